"""Ops against their formulas, on the GPU if there is one."""

import pytest
import torch

import rsd_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def numbers(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE)


@pytest.mark.kernels_ci
def test_linear() -> None:
    x, weight, bias, residual = numbers(3, 64), numbers(32, 64), numbers(32), numbers(3, 32)
    out = rsd_kernels.linear(x, weight, bias, residual)
    torch.testing.assert_close(out, x @ weight.T + bias + residual, atol=1e-2, rtol=1e-2)


@pytest.mark.kernels_ci
def test_rewards_and_verdicts() -> None:
    hidden, norm, weight, bias = numbers(4, 64), numbers(64), numbers(1, 64) / 8, numbers(1)
    kind = torch.full((4,), int(rsd_kernels.PolicyKind.THRESHOLD), dtype=torch.int32)
    bar, draws = torch.full((4,), 0.5), torch.rand(4)
    policy = [tensor.to(DEVICE) for tensor in (kind, bar, torch.zeros(4), draws)]
    reward, accept = rsd_kernels.value_reward_accept(hidden, norm, 1e-6, weight, bias, *policy)
    normed = hidden / (hidden.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm
    torch.testing.assert_close(
        reward, torch.sigmoid(normed @ weight[0] + bias), atol=1e-3, rtol=1e-3
    )
    assert accept.tolist() == (reward >= 0.5).int().tolist()


@pytest.mark.kernels_ci
def test_rollback() -> None:
    kv_len, num_pages = torch.tensor([[40, 52]]), torch.tensor([[3, 4]])
    keep, table = torch.tensor([[40, 30]]), torch.arange(8).view(1, 2, 4)
    free, num_free, owners = torch.arange(15, -1, -1), torch.tensor([8]), torch.ones(16)
    kv_len, num_pages, table, free, num_free, owners, keep = (
        tensor.int().to(DEVICE)
        for tensor in (kv_len, num_pages, table, free, num_free, owners, keep)
    )
    rsd_kernels.rollback(kv_len, num_pages, table, free, num_free, owners, keep, [16])
    assert kv_len.tolist() == [[40, 30]] and num_pages.tolist() == [[3, 2]]
    assert int(num_free) == 10
