"""The byte buffer seen as K and V of models whose tokens differ in size."""

from __future__ import annotations

import pytest
import torch

from rsd_engine.memory.page_pool import KVShape, PagePool
from tests.page_checks import poison

CPU = torch.device("cpu")
SMALL = KVShape(num_layers=2, num_kv_heads=1, head_dim=6, dtype=torch.float32)
LARGE = KVShape(num_layers=3, num_kv_heads=2, head_dim=10, dtype=torch.bfloat16)


def test_tokens_that_fit_a_page() -> None:
    pool = PagePool(4, 512, CPU)
    assert (SMALL.bytes_per_token, LARGE.bytes_per_token) == (96, 240)
    assert pool.view(SMALL).tokens_per_page == 512 // 96 == 5
    assert pool.view(LARGE).tokens_per_page == 512 // 240 == 2


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_planes_never_overlap_and_stay_inside_their_page(shape: KVShape) -> None:
    pool = PagePool(3, 768, CPU)
    pool.buffer.zero_()
    kv = pool.view(shape)
    assert len(kv.k) == len(kv.v) == shape.num_layers
    for number, plane in enumerate((*kv.k, *kv.v), start=1):
        assert plane.shape == (3, kv.tokens_per_page, shape.num_kv_heads, shape.head_dim)
        plane.fill_(number)
    for number, plane in enumerate((*kv.k, *kv.v), start=1):
        assert bool((plane == number).all())
    used = kv.tokens_per_page * shape.bytes_per_token
    assert int(pool.buffer.view(3, 768)[:, used:].count_nonzero()) == 0


def test_a_page_of_one_role_does_not_touch_others() -> None:
    pool = PagePool(3, 768, CPU)
    pool.buffer.zero_()
    small, large = pool.view(SMALL), pool.view(LARGE)
    small.k[0][1] = 7.0
    large.v[2][2] = 8.0
    assert int(pool.buffer.view(3, 768)[0].count_nonzero()) == 0
    assert bool((small.k[0][1] == 7.0).all()) and bool((large.v[2][2] == 8.0).all())


def test_poison_reads_as_nan_in_every_type_and_spares_other_pages() -> None:
    pool = PagePool(3, 768, CPU)
    pool.buffer.zero_()
    poison(pool, torch.tensor([0, 2]))
    for shape in (SMALL, LARGE):
        kv = pool.view(shape)
        for plane in (*kv.k, *kv.v):
            assert bool(plane[[0, 2]].isnan().all()) and int(plane[1].count_nonzero()) == 0


def test_bad_pools() -> None:
    with pytest.raises(ValueError, match="num_pages must be at least 1, got 0"):
        PagePool(0, 256, CPU)
    for page_bytes in (0, 100, 300):
        with pytest.raises(ValueError, match=f"page_bytes .* got {page_bytes}"):
            PagePool(1, page_bytes, CPU)
    with pytest.raises(ValueError, match="page_bytes=256 holds no token of 960 bytes"):
        PagePool(1, 256, CPU).view(KVShape(4, 4, 15, torch.float16))
