"""What works in the bodies of conditional nodes of a CUDA graph, and what it costs."""
