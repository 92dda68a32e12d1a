"""Norm, projection to q, k and v, rotary embedding and the store into pages, in one launch."""
