"""Kernels that start early: their gates on a CPU, with runs that stand for them."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch

from bench.kernels import model_decode, model_ops, overlap
from bench.kernels.early_launch import (
    VARIANTS,
    prefetching,
    require_same_logits,
    starting_early,
    switched,
)
from bench.kernels.setting import TINY, Setting
from bench.lib.play import play
from bench.lib.timing import Mismatch
from rsd_engine.loop.executors.graph_runtime import GraphError
from rsd_kernels.linear import tiles

SWITCH = "RSD_OVERLAP_KERNELS"


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


@pytest.mark.parametrize("before", [None, "1"])
def test_the_switch_is_put_back(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    if before is not None:
        monkeypatch.setenv(SWITCH, before)
    seen = []
    switched(lambda _: seen.append(os.environ[SWITCH]), early=True)(0)
    with pytest.raises(KeyError), starting_early(False):
        seen.append(os.environ[SWITCH])
        raise KeyError
    assert seen == ["1", "0"]
    assert os.environ.get(SWITCH) == before


class Pass:
    """Logits of one row from a token, by way of a buffer, as kernels would."""

    def __init__(self, *, stale: bool) -> None:
        self.token = torch.tensor([3], dtype=torch.int32)
        self.logits = torch.zeros(1, 50)
        self.hidden = torch.zeros(1, 1)
        self.stale = stale

    def plain(self) -> None:
        self.hidden.copy_(self.token)
        self.logits.copy_(self.hidden * torch.arange(50))

    def early(self) -> None:
        """The second kernel, if it does not wait, reads what the pass before has left."""
        if self.stale:
            self.logits.copy_(self.hidden * torch.arange(50))
        self.plain() if not self.stale else self.hidden.copy_(self.token)


def test_a_kernel_that_reads_too_early_is_found() -> None:
    right, wrong = Pass(stale=False), Pass(stale=True)
    require_same_logits(right.plain, right.early, right.token, right.logits)
    assert right.token.tolist() == [3]
    with pytest.raises(Mismatch, match="kernels that start early: other logits, token 1, round 0"):
        require_same_logits(wrong.plain, wrong.early, wrong.token, wrong.logits)


def test_whole_models_on_a_device_that_starts_nothing_early() -> None:
    found = model_decode.measure_early(Setting.tiny(), TINY["tiny"], 1, 1e9)
    why = "this device starts no kernel early"
    assert found == {
        "refused": dict.fromkeys(VARIANTS, why), "times_faster": {}, "share_of_bandwidth": {},
        "us": {}, "best": None, "faster": False,
    }  # fmt: skip
    assert model_ops.early_lines("tiny, early", found)[0] == (
        f"tiny, early: ours, early: not timed, {why}"
    )


def test_whole_models_with_kernels_that_start_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, but that the switch changes nothing on a CPU; one variant is wrong."""
    gates = []

    def gate(plain: Any, early: Any, token: torch.Tensor, logits: torch.Tensor) -> None:
        require_same_logits(plain, early, token, logits)
        gates.append(early)
        if len(gates) == 2:
            raise Mismatch("other logits")

    monkeypatch.setattr(model_decode, "_starts_early", lambda _: True)
    monkeypatch.setattr(model_decode, "require_same_logits", gate)
    early = model_decode.measure_early(Setting.tiny(), TINY["tiny"], 2, 1e9)
    us = early["us"]
    first, wrong, last = VARIANTS
    assert early["refused"] == {wrong: "other logits"} and wrong not in us
    assert early["times_faster"] == {
        name: pytest.approx(us["ours"] / us[name]) for name in (first, last)
    }
    assert early["best"] == min((first, last), key=us.__getitem__)
    assert early["faster"] == (us[early["best"]] < us["ours"])
    num_bytes = model_decode.measure(Setting.tiny(), TINY["tiny"], 2, 1e9)["num_bytes"]
    share = num_bytes / 1e9 / us[last] * 1e6
    assert early["share_of_bandwidth"][last] == pytest.approx(share)
    assert [line.split(": ")[1] for line in model_ops.early_lines("tiny", early)] == [
        first, last, wrong
    ]  # fmt: skip


def test_how_much_is_asked_for_is_put_back() -> None:
    cut = tiles.projection_tiles(1, 1536, 4096, gated=False, normed=False, dtype=torch.bfloat16)
    found = {}
    for name, num_bytes in VARIANTS.items():
        with prefetching(num_bytes):
            found[name] = cut.block_n * 128 * cut.prefetch(4096, 2, gated=False)
    first, least, most = found.values()
    assert (first, most) == (16384, cut.block_n * 8192)  # at most whole rows
    assert least == 0
    assert tiles.PREFETCH_BYTES == 16384


def test_the_device_loop_in_tiny(capsys: pytest.CaptureFixture[str]) -> None:
    assert overlap.main(["--dry-run"]) == 0
    found = last_json(capsys)
    assert found["works"] and found["why"] is None and not found["starts_early"]
    seconds = found["seconds_a_step"]
    assert found["times_faster"] == pytest.approx(seconds["plain"] / seconds["early"], rel=1e-3)


def test_other_decisions_are_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    played = []

    def other(*arguments: Any, **options: Any) -> Any:
        found = play(*arguments, **options)
        played.append(found)
        if len(played) == 3:
            found.rewards[0][0] = -1.0
        return found

    monkeypatch.setattr(overlap, "play", other)
    monkeypatch.setattr(overlap, "_timed", lambda *_: pytest.fail("timed despite the gate"))
    assert overlap.main(["--dry-run"]) == 1
    found = last_json(capsys)
    assert not found["works"]
    assert found["why"].endswith("with kernels that start early the second run decides otherwise")


def test_a_loop_that_cannot_be_captured_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise GraphError("draft.forward cannot be captured into a CUDA graph")

    monkeypatch.setattr(overlap, "trial", refuse)
    assert overlap.main(["--dry-run"]) == 0
    found = last_json(capsys)
    assert (found["works"], "times_faster" in found) == (False, False)
    assert found["why"].startswith("GraphError: draft.forward cannot be captured")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        overlap.main([])
    assert "no CUDA device of sm_90 or later; --dry-run" in capsys.readouterr().err
