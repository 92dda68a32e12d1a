"""Kernels of reward-guided speculative decoding, without the engine.

A folder is an op. In it `kernel.py` holds the Triton launchers and `twin.py` the same op in plain
PyTorch; the rest belongs to that op alone. `ops` is what the engine's loop calls, `model_ops` what
its models call, `torch_ops` the same for other stacks; `state` is the data that ops share.

Names in Triton kernels: `b_` a block of values, `m_` a mask, `o_` offsets, `p_` pointers, `i_` an
index of this program (its row, head or tile); no prefix: a scalar, or an argument. UPPER_CASE is
known when the kernel is compiled (constexpr).
"""
