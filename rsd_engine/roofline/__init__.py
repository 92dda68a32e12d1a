"""The least time and the memory that reward-guided decoding can need, from sizes alone."""
