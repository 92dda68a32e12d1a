"""Weights in few bits for a GPU, where a group of inputs shares a scale."""
