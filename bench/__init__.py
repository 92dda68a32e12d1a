"""Measurements: speed against other programs, and accuracy against arithmetic."""
