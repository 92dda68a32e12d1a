"""A CUDA driver for machines without a device, and the pieces of `torch.cuda` that go with it."""
