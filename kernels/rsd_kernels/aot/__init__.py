"""Compile every launch that ships ahead of time, without a GPU."""
