"""The least time of decoding, from sizes and rates alone, and the expected time of kernels."""
