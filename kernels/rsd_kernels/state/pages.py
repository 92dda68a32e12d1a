"""How tokens fill pages."""

from __future__ import annotations


def pages_for(num_tokens: int, tokens_per_page: int) -> int:
    """Pages that `num_tokens` tokens occupy."""
    return -(-num_tokens // tokens_per_page)
