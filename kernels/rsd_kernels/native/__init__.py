"""What the CPU and the CUDA library share: how they are built and loaded."""
