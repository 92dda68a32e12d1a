"""The example of `docs/kernels.md`, run as it stands."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.docs.documents import document

KERNELS = document("docs/kernels.md")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def example() -> str:
    """All blocks, one after the other."""
    blocks = KERNELS.blocks("python")
    assert len(blocks) == 2
    return "\n".join(blocks)


@pytest.mark.parametrize("device", DEVICES)
def test_runs_as_it_stands(device: str) -> None:
    names: dict[str, Any] = {}
    with torch.device(device):
        exec(compile(example(), KERNELS.name, "exec"), names)
    assert names["accept"].tolist() == [1, 0, 0]
    assert bool(((names["reward"] > 0) & (names["reward"] < 1)).all())
    assert sorted(names["free_pages"][40:46].tolist()) == [6, 7, 10, 18, 19, 22]
    q, k, v = (names[name].cpu() for name in ("q", "k", "v"))
    table = names["page_table"][0].cpu()
    for slot, first, end, keys in ((2, 0, 1, 30), (0, 1, 7, 40)):
        where = torch.arange(keys)
        page, token = table[slot, where // 16].long(), where % 16
        row = torch.arange(keys - (end - first), keys)[:, None]
        exact = scaled_dot_product_attention(
            q[first:end].transpose(0, 1),
            k[page, token].transpose(0, 1).repeat_interleave(2, 0),
            v[page, token].transpose(0, 1).repeat_interleave(2, 0),
            attn_mask=where <= row,
        ).transpose(0, 1)
        assert torch.allclose(names["out"][first:end].cpu(), exact, atol=1e-5)


def test_no_copy_is_made_of_the_cache() -> None:
    names: dict[str, Any] = {}
    exec(compile(example(), KERNELS.name, "exec"), names)
    cache = names["cache"].untyped_storage().data_ptr()
    assert all(names[name].untyped_storage().data_ptr() == cache for name in ("k", "v"))


def test_every_op_is_listed() -> None:
    listed = {row[0].strip("`") for row in KERNELS.table_after("have not run on a GPU")}
    registered = {name.removeprefix("rsd::") for name in torch._C._dispatch_get_all_op_names()
                  if name.startswith("rsd::")}  # fmt: skip
    assert listed == {name.partition(".")[0] for name in registered}
