"""Guesses at what the target will write: where they come from, what becomes of them."""
