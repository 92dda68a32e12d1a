"""Guessing what the target will write, and verifying several tokens in one pass."""
