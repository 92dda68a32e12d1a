"""Kernels of reward-guided speculative decoding, without the engine.

A folder is an op; in it `kernel.py` is Triton, `twin.py` the same op in plain PyTorch, and the rest
belongs to that op alone. `ops` is what the engine's loop calls, `model_ops` what its models call,
`torch_ops` the same for other stacks; `state` is the data that all ops share.
"""
