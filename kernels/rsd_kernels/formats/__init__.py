"""Matrices held in the bytes of their files: formats, and what they expand to."""
