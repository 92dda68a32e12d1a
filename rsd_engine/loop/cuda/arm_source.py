"""CUDA C of the kernel that arms handles: compiled by NVRTC where a graph is built."""

from __future__ import annotations

NO_EQUALS = -1

SOURCE = r"""
extern "C" __device__ __cudart_builtin__ void cudaGraphSetConditional(
    unsigned long long handle, unsigned int value);

// handles[i] becomes *flags[i], or *flags[i] == equals[i] where equals[i] is not negative.
extern "C" __global__ void arm(const unsigned long long* handles, const int* const* flags,
                               const int* equals, int count) {
  for (int i = 0; i < count; ++i) {
    int value = *flags[i];
    if (equals[i] >= 0) value = value == equals[i];
    cudaGraphSetConditional(handles[i], value);
  }
}
"""
