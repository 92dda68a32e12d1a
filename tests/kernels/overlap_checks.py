"""Kernels that start early, as far as an interpreter can tell. Run by `test_overlap.py`.

The interpreter runs one program after another. What the kernel before has yet to write is played:
from the start of a program to its wait everything that a pass writes is NaN, and must stay NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rsd_engine.models.heads import LanguageModel
from rsd_engine.models.loader import load_language_model
from rsd_kernels import ahead, overlap
from rsd_kernels.attention import attend
from rsd_kernels.attention import kernel as paged_attention
from rsd_kernels.attention import tiles as attention_tiles
from rsd_kernels.attention.map import AttentionMap
from rsd_kernels.launch import Launch, can_overlap
from rsd_kernels.linear import kernel as projection
from rsd_kernels.linear import tiles
from rsd_kernels.linear.weight import LinearWeight
from rsd_kernels.model_ops import triton_ops
from rsd_kernels.norm import kernel as rms_norm
from rsd_kernels.qkv import kernel as qkv_projection
from rsd_kernels.rope import kernel as rope_kv_write
from tests.kernels.harness.child import INTERPRETED
from tests.kernels.harness.tensors import DEVICE
from tests.kernels.model_op_checks import on_device, padded, tokens
from tests.models.checkpoints import make_model, save
from tests.models.driver import pack
from tests.plain_weights import matrix_of

interpreted = pytest.mark.skipif(not INTERPRETED, reason="plays a device in the interpreter")
LAUNCHERS = (projection, qkv_projection, paged_attention, rope_kv_write, rms_norm)
WAITERS = (projection, qkv_projection, attend, rope_kv_write, rms_norm)


@dataclass
class Played:
    """What a program may not touch before it has waited."""

    written: list[Tensor]
    allowed: int = 0
    waited: int = 0
    prefetched: list[int] = field(default_factory=list)
    _kept: list[Tensor] | None = None

    def allow(self) -> None:
        """A program starts, and lets the next kernel start."""
        assert self._kept is None, "a program ended without waiting"
        self.allowed += 1
        self._kept = [tensor.clone() for tensor in self.written]
        for tensor in self.written:
            tensor.fill_(torch.nan)

    def wait(self) -> None:
        assert self._kept is not None, "a program waited twice"
        self.waited += 1
        for tensor, kept in zip(self.written, self._kept, strict=True):
            assert bool(tensor.isnan().all()), "something was written before the wait"
            tensor.copy_(kept)
        self._kept = None

    def prefetch(self, pointers: Any) -> None:
        assert self._kept is not None, "what is there is asked for, but nothing is left to wait for"
        self.prefetched += pointers.handle.data.reshape(-1).tolist()


@pytest.fixture
def playing(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Tensor]], Played]:
    """From then on all kernels that can start early do so."""

    def begin(written: list[Tensor]) -> Played:
        played = Played(written)
        monkeypatch.setattr(overlap, "gdc_launch_dependents", played.allow)
        monkeypatch.setattr(overlap, "gdc_wait", played.wait)
        for module in (overlap, projection):
            monkeypatch.setattr(module, "prefetch", played.prefetch)
        for module in LAUNCHERS:
            monkeypatch.setattr(module, "overlapping", lambda num_rows: num_rows <= 16)
        return played

    return begin


@dataclass
class Pass:
    """One forward of a small model on rows of two sequences."""

    model: LanguageModel
    num_rows: int

    def __post_init__(self) -> None:
        self.driver, self.kv, self.table = on_device(self.model)
        chunks = [(0, tokens(0, 0, self.num_rows - 2)), (2, tokens(2, 0, 1))]
        packed = pack(chunks, self.driver.kv_len, self.driver.table, self.kv.tokens_per_page)
        self.batch = padded(packed, self.num_rows, 3)
        self.out = torch.full((3, self.model.config.vocab_size), torch.nan, device=DEVICE)

    def run(self) -> Tensor:
        self.model.logits(self.batch, self.kv, self.table, self.out)
        return self.out[:2].clone()

    @property
    def written(self) -> list[Tensor]:
        """Everything that a pass writes: activations, parts of sums, K and V, logits."""
        buffers = self.model.decoder.activations
        found = [getattr(buffers, f.name) for f in fields(buffers)]
        pages = self.driver.pool.buffer.view(self.model.dtype)
        tensors = [tensor for tensor in found if isinstance(tensor, Tensor)]
        assert len(tensors) >= 6
        scratch = self.model.decoder.scratch
        assert scratch is not None
        parts = [scratch.part, scratch.part_max, scratch.part_sum]
        # Of a counter that is read or reset too early the bits are those of NaN.
        return [*tensors, *parts, scratch.arrived.view(torch.float32), pages, self.out]

    @property
    def weights(self) -> Iterator[Tensor]:
        for layer in self.model.decoder.weights.layers:
            for weight in vars(layer).values():
                parts = vars(weight).values() if isinstance(weight, LinearWeight) else [weight]
                yield from (tensor for tensor in parts if tensor is not None)
        yield matrix_of(self.model.lm_head)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], Pass]:
    def make(architecture: str, num_rows: int) -> Pass:
        folder = save(make_model(architecture), tmp_path)
        monkeypatch.setattr(attention_tiles, "_PROGRAMS", 30)
        monkeypatch.setattr(attention_tiles, "_SPLIT_KEYS", 1)
        model = load_language_model(folder, max_rows=16, device=DEVICE, dtype="float32")
        config = model.config
        heads = (config.num_q_heads, config.num_kv_heads, config.head_dim)
        scratch = attention_tiles.attention_scratch(16, *heads, torch.float32, DEVICE)
        monkeypatch.setattr(model.decoder, "ops", triton_ops(scheduled=True))
        monkeypatch.setattr(model.decoder, "scratch", scratch)
        return Pass(model, num_rows)

    return make


def inside(addresses: list[int], tensors: list[Tensor]) -> bool:
    """Every address lies in one of the tensors."""
    ranges = [(t.data_ptr(), t.data_ptr() + t.untyped_storage().nbytes()) for t in tensors]
    return all(any(first <= at < end for first, end in ranges) for at in set(addresses))


@interpreted
@pytest.mark.parametrize(("architecture", "num_rows"), [("qwen3", 4), ("llama-bias", 16)])
def test_a_forward_waits_before_it_touches_what_others_write(
    architecture: str,
    num_rows: int,
    small: Callable[[str, int], Pass],
    playing: Callable[[list[Tensor]], Played],
) -> None:
    forward = small(architecture, num_rows)
    wanted = forward.run()
    forward.driver.pool.buffer.view(torch.float32).fill_(torch.nan)
    played = playing(forward.written)
    assert torch.equal(forward.run(), wanted) and bool(wanted.isfinite().all())
    assert played.allowed == played.waited > 50
    pages = forward.driver.pool.buffer
    assert inside(played.prefetched, [*forward.weights, pages])
    assert not inside(played.prefetched, [*forward.weights])  # K and V too
    assert not inside(played.prefetched, [pages])


@interpreted
@pytest.mark.parametrize("module", WAITERS)
def test_a_kernel_that_does_not_wait_is_found(
    module: Any,
    small: Callable[[str, int], Pass],
    playing: Callable[[list[Tensor]], Played],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Norms of heads take two launches where others take one.
    forward = small("llama-bias" if module is qkv_projection else "qwen3", 4)
    playing(forward.written)
    monkeypatch.setattr(module, "wait_for_previous_kernel", lambda _: None)
    with pytest.raises(Exception, match="a program ended without waiting"):
        forward.run()
        forward.run()  # the last program's end shows when the next one starts


@interpreted
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(7, 40), (16, 300), (33, 4096 + 8)])
def test_which_weights_a_projection_asks_for(
    num_outputs: int,
    num_inputs: int,
    gated: bool,
    playing: Callable[[list[Tensor]], Played],
) -> None:
    """The beginning of every row, 128 bytes apart; the norm and the bias as a whole."""
    total = num_outputs * (2 if gated else 1)
    x, norm, bias = torch.ones(1, num_inputs), torch.ones(num_inputs), torch.ones(total)
    weight, out = torch.ones(total, num_inputs), torch.zeros(1, num_outputs)
    played = playing([x, out])
    launch: Launch = projection.projection_launch(
        x, LinearWeight(weight, bias), out=out, norm=norm, eps=1e-6, gated=gated
    )
    assert launch.overlap
    launch.run()
    in_row = min(128 * launch.args["PREFETCH"], 4 * num_inputs)
    rows = {
        row.data_ptr() + min(at, 4 * num_inputs - 4)
        for row in weight
        for at in range(0, 128 * launch.args["PREFETCH"], 128)
    }
    vectors = {
        v.data_ptr() + min(at, v.nbytes - 4) for v in (norm, bias) for at in range(0, v.nbytes, 128)
    }
    found = set(played.prefetched)
    assert found >= rows | vectors and inside(played.prefetched, [weight, norm, bias])
    assert found - rows <= {v.data_ptr() + v.nbytes - 4 for v in (norm, bias)} | vectors
    assert in_row * launch.args["BLOCK_N"] * (2 if gated else 1) <= 16384


@interpreted
@pytest.mark.parametrize("num_programs", [1, 3])
@pytest.mark.parametrize("num_bytes", [128, 5 * 128, 300 * 128])
def test_the_next_weight_is_asked_for_by_all_programs_together(
    num_bytes: int, num_programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line of its beginning, after all work; whoever asks, results are the same."""
    seen: list[int] = []
    following = torch.ones(64, 256)
    weight = LinearWeight(torch.ones(4 * num_programs, 8)).before(following)
    out = torch.zeros(1, 4 * num_programs)

    def ask(pointers: Any) -> None:
        assert out[0, :4].tolist() == [8.0] * 4
        seen.extend(pointers.handle.data.reshape(-1).tolist())

    monkeypatch.setattr(overlap, "prefetch", ask)
    projection.projection_launch(torch.ones(1, 8), weight, out=out).run()
    assert seen == []  # the interpreter has no cache
    monkeypatch.setattr(ahead, "interpreting", lambda: False)
    monkeypatch.setattr(ahead, "AHEAD_BYTES", num_bytes)
    out.zero_()
    launch = projection.projection_launch(torch.ones(1, 8), weight, out=out)
    assert launch.grid == (num_programs,)
    launch.run()
    first = following.data_ptr()
    assert set(seen) == set(range(first, first + num_bytes, 128))
    assert out[0].tolist() == [8.0] * 4 * num_programs


@interpreted
@pytest.mark.parametrize("num_keys", [1, 40, 200])
def test_attention_asks_for_a_later_weight(num_keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the last to arrive; and a chunk of a prompt asks for nothing."""
    following, seen = torch.ones(64, 256), list[int]()  # 64 KiB

    def ask(pointers: Any) -> None:
        seen.extend(pointers.handle.data.reshape(-1).tolist())

    def attend_by(rows: int) -> tuple[Tensor, Launch]:
        pages = torch.arange(16 * 16 * 8.0).view(16, 16, 1, 8).sin()
        table = torch.arange(16, dtype=torch.int32)[None]
        batch = pack([(0, [1] * rows)], [num_keys - 1], table, 16)
        key_map = AttentionMap(batch, table, 16, None, ())
        out = torch.zeros(rows, 2, 8)
        launch = paged_attention.attention_launch(
            torch.ones(rows, 2, 8), pages, pages.cos(), key_map, scale=1.0, out=out, ahead=following
        )
        launch.run()
        return out, launch

    expected, _ = attend_by(1)
    monkeypatch.setattr(overlap, "prefetch", ask)
    monkeypatch.setattr(ahead, "interpreting", lambda: False)
    monkeypatch.setattr(paged_attention, "ATTENTION_AHEAD_BYTES", 57_984)
    found, launch = attend_by(1)
    assert torch.equal(found, expected)
    share = 128 * 128  # bytes that a program asks for in a turn
    assert launch.grid == (1, 1, 32)
    used = -(-num_keys // 64)  # splits of 64 keys, of which the last one combines
    shares = [i for i in range(4) if used == 1 or i != used - 1]
    wanted = [range(i * share, min((i + 1) * share, 57_984), 128) for i in shares]
    first = following.data_ptr()
    assert {at - first for at in seen} == {at for each in wanted for at in each}
    seen.clear()
    attend_by(17)
    assert seen == []


@interpreted
def test_a_program_with_several_tiles_allows_the_next_kernel_at_its_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What that kernel prefetches would be evicted if it came much earlier."""
    seen: list[str] = []
    for name in ("_MULTIPROCESSORS", "_RESIDENT", "RESIDENT"):
        monkeypatch.setattr(tiles, name, 1)
    monkeypatch.setattr(projection, "multiprocessors", lambda: 2)
    monkeypatch.setattr(projection, "overlapping", lambda _: True)
    for module in (overlap, projection):
        monkeypatch.setattr(module, "prefetch", lambda _: seen.append("prefetch"))
    monkeypatch.setattr(overlap, "gdc_wait", lambda: seen.append("wait"))
    monkeypatch.setattr(overlap, "gdc_launch_dependents", lambda: seen.append("allow"))
    product = projection.product

    def watched(*args: Any) -> Any:
        seen.append("product")
        return product(*args)

    monkeypatch.setattr(projection, "product", watched)
    out = torch.zeros(1, 17)
    launch = projection.projection_launch(
        torch.ones(1, 8), LinearWeight(torch.ones(34, 8)), out=out, gated=True
    )
    assert launch.args["BLOCK_N"] == 4 and launch.grid == (2,)
    launch.run()
    programs = [
        ["prefetch", "prefetch", "wait", "product", "product", "allow", "product"],
        ["prefetch", "prefetch", "wait", "product", "allow", "product"],
    ]
    assert seen == [*programs[0], *programs[1]]
    assert out[0].tolist() == [float(8 * torch.sigmoid(torch.tensor(8.0)) * 8)] * 17


@pytest.mark.skipif(INTERPRETED, reason="watches a device at work")
@pytest.mark.parametrize("architecture", ["qwen3", "llama-bias"])
def test_a_captured_forward_has_the_same_bits(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of other tokens than the pass before, so that what is read too early is wrong."""
    if not can_overlap():
        pytest.skip("this device starts no kernel early")
    folder = save(make_model(architecture), tmp_path)
    model = load_language_model(folder, max_rows=16, device=DEVICE, dtype="bfloat16")
    forward, graphs = Pass(model, 16), {}
    for switch in ("0", "1"):
        monkeypatch.setenv("RSD_OVERLAP_KERNELS", switch)
        forward.run()
        torch.cuda.synchronize()
        graphs[switch] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[switch]):
            model.logits(forward.batch, forward.kv, forward.table, forward.out)

    def replay(switch: str, shift: int) -> Tensor:
        forward.batch.token.copy_((torch.arange(16, device=DEVICE) * 5 + shift) % 61)
        forward.out.fill_(torch.nan)
        graphs[switch].replay()
        return forward.out[:2].clone()

    wanted = [replay("0", shift) for shift in range(8)]
    for _ in range(5):
        for shift, expected in enumerate(wanted):
            assert torch.equal(replay("1", shift), expected)


@interpreted
def test_launches_do_not_overlap_by_themselves() -> None:
    launch = projection.projection_launch(
        torch.ones(1, 8), LinearWeight(torch.ones(4, 8)), out=torch.zeros(1, 4)
    )
    assert not launch.overlap and launch.options.keys() == {"num_warps", "num_stages", "maxnreg"}
    assert replace(launch, overlap=True).options["launch_pdl"] is True
    assert launch.all_args["OVERLAP"] is False and "OVERLAP" not in launch.args
