"""A reward head on the last rows of 16 sequences, and attention of 16 decode rows."""

import torch
from kernels.benchmark import Benchmark

HIDDEN, SEQUENCES, HEADS, KV_HEADS, HEAD_DIM, PAGE, PAGES = 3584, 16, 28, 4, 128, 16, 64


class RsdKernels(Benchmark):
    seed = 0

    def setup(self) -> None:
        made = {"device": self.device, "dtype": torch.bfloat16}
        self.hidden, self.norm = torch.randn(SEQUENCES, HIDDEN, **made), torch.ones(HIDDEN, **made)
        self.weight = torch.randn(1, HIDDEN, device=self.device) / HIDDEN**0.5
        self.bias = torch.zeros(1, device=self.device)
        kind = torch.ones(SEQUENCES, dtype=torch.int32, device=self.device)
        bar, unused, draws = torch.rand(3, SEQUENCES, device=self.device)
        self.policy = kind, bar, unused, draws
        pages = torch.randn(2, SEQUENCES * PAGES, PAGE, KV_HEADS, HEAD_DIM, **made)
        self.k_pages, self.v_pages = pages
        self.q = torch.randn(SEQUENCES, HEADS, HEAD_DIM, **made)
        index = torch.arange(SEQUENCES + 1, dtype=torch.int32, device=self.device)
        self.sequences = index[:-1], index, torch.full_like(index[:-1], PAGE * PAGES)
        count = SEQUENCES * PAGES
        self.table = torch.arange(count, dtype=torch.int32, device=self.device).view(-1, PAGES)

    def benchmark_value_reward_accept(self) -> None:
        self.out, _ = self.kernel.value_reward_accept(
            self.hidden, self.norm, 1e-6, self.weight, self.bias, *self.policy
        )

    def verify_value_reward_accept(self) -> torch.Tensor:
        rows = self.hidden.float()
        normed = rows * (rows.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        return torch.sigmoid(normed.bfloat16().float() @ self.weight[0] + self.bias)

    def benchmark_paged_attention(self) -> None:
        pages = self.k_pages, self.v_pages
        self.out = self.kernel.paged_attention(
            self.q, *pages, *self.sequences, self.table, HEAD_DIM**-0.5
        )
