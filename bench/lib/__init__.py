"""What all benchmarks share: timing, checking, random models, scenes and printing."""
