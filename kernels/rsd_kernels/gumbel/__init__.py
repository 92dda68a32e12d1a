"""Gumbel noise of token ids, from counter-based random numbers: equal to the bit everywhere."""
