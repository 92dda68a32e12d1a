"""The kernel benchmarks on a CPU in tiny sizes: gates, figures, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.kernels import (
    eager_ops,
    gate,
    loop_ops,
    model_decode,
    model_ops,
    sanitize,
    weight_formats,
)
from bench.kernels.attention_cases import attention_case, decode_inputs
from bench.kernels.loop_op_cases import rollback_case
from bench.kernels.loop_op_state import TOKENS_PER_PAGE, LoopOpSizes, PageSet, copied, mid_step
from bench.kernels.projection_cases import fused_case, matrices, product_case
from bench.kernels.setting import TINY, Setting
from bench.lib.timing import Mismatch
from rsd_kernels.aot.launches import DecoderShape
from rsd_kernels.linear.weight import LinearWeight
from rsd_kernels.policy.formula import PolicyKind, accept_probability
from rsd_kernels.rollback.twin import rollback

CPU = torch.device("cpu")
OPS = {
    *("qkv", "o", "gate_up", "down", "lm_head", "paged_attention", "rope_kv_write", "embed"),
    *("norm_linear (qkv)", "linear + residual (o)", "norm_gate_up", "linear + residual (down)"),
    *("lm_head (fp32 logits)", "rows_norm"),
}


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def test_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    model_ops.main(["--dry-run"])
    found = last_json(capsys)
    assert found["bandwidth_bytes_per_second"] > 0
    measured = found["ops"]["tiny"]
    assert {(entry["op"], entry["rows"]) for entry in measured} == {
        (op, rows) for op in OPS for rows in (1, 2)
    }
    for entry in measured:
        assert {"ours"} < set(entry["us"]) == set(entry["share_of_bandwidth"])
        for name, us in entry["us"].items():
            rate = entry["num_bytes"] / us * 1e6
            share = entry["share_of_bandwidth"][name]
            assert share == pytest.approx(rate / found["bandwidth_bytes_per_second"], rel=1e-3)
    whole = found["whole_model"]["tiny"]
    assert whole["ceiling_us"] == pytest.approx(
        1e6 * whole["num_bytes"] / found["bandwidth_bytes_per_second"], rel=1e-3
    )
    assert set(found["winners"]["tiny"].values()) == {"ours"}
    assert set(found["early"]) == {"tiny, early"}


def test_the_cuda_library_stands_beside_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is there: its products alone, fused, and in a whole model."""
    setting = Setting.tiny()
    monkeypatch.setattr(Setting, "cuda_ops", property(lambda setting: setting.ops))
    for matrix in matrices(setting, TINY["tiny"]):
        alone = product_case(setting, matrix, 1)
        assert {"ours", "cuda", "cuda, overlapped"} < set(alone.contenders)
        fused = fused_case(setting, matrix, 4)
        assert set(fused.contenders) == {"ours", "cuda", "torch ops"}
        assert set(fused.gate()) == {"ours", "cuda"}
        assert set(fused_case(setting, matrix, 5).contenders) == {"ours", "torch ops"}
    decoded = model_decode.measure(setting, TINY["tiny"], 1, 1e9)
    assert decoded["us"]["ours, CUDA products"] > 0
    assert "CUDA products" in model_ops.model_table({"tiny": decoded})


def test_weight_formats(capsys: pytest.CaptureFixture[str]) -> None:
    assert weight_formats.main(["--dry-run"]) == 0
    found = last_json(capsys)
    assert not found["failed"] and not found["starts_early"]
    measured = found["models"]["tiny"]
    assert list(measured) == ["1", "2"]
    for entries in measured.values():
        assert list(entries) == ["plain", *weight_formats.FORMATS]
        assert all(entry["relative_error"] < 1e-5 for n, entry in entries.items() if n != "plain")
        for entry in entries.values():
            times = entries["plain"]["us"] / entry["us"]
            assert entry["times_faster"] == pytest.approx(times, rel=1e-3)


def test_bytes_of_weight_formats() -> None:
    """Counted by hand: of layers, beside embedding, vectors, K and V."""
    shape = DecoderShape(256, 512, 2, 4, 2, 64, 160, True)  # whole lines in every format
    setting = replace(Setting.tiny(), rows=(1,))
    entries = weight_formats.measure(setting, shape, 1e9)["1"]
    sizes = [(512, 256), (256, 256), (1024, 256), (256, 512)]
    weights = 2 * sum(n * k for n, k in sizes)
    groups, blocks = weights // 128, weights // 128**2
    of_layers = {
        "plain": 4 * weights,
        "int4": weights // 2 + 2 * groups,
        "int4 with zeros": weights // 2 + 3 * groups,
        "int4 in act-order": weights // 2 + 2 * groups + 4 * 2 * sum(k for _, k in sizes),
        "int8": weights + 2 * groups,
        "fp8": weights + 4 * blocks,
    }
    rest = {name: entries[name]["num_bytes"] - of_layers[name] for name in entries}
    assert rest == dict.fromkeys(rest, rest["plain"]) and rest["plain"] > 0


def test_a_format_with_wrong_logits_is_told_and_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> float:
        raise Mismatch("logits are far away")

    monkeypatch.setattr(weight_formats, "require_close_logits", refuse)
    monkeypatch.setattr(weight_formats, "FORMATS", {"fp8": weight_formats.FORMATS["fp8"]})
    with pytest.raises(SystemExit, match="2 failed, the first: tiny, fp8, 1 rows: logits are far"):
        weight_formats.main(["--dry-run"])
    found = last_json(capsys)["models"]["tiny"]["1"]
    assert found["fp8"] == {"wrong": "logits are far away"} and found["plain"]["us"] > 0


def test_whole_models_with_wrong_logits_are_timed_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> float:
        raise Mismatch("logits are far away")

    monkeypatch.setattr(model_decode, "require_close_logits", refuse)
    with pytest.raises(SystemExit, match="1 failed, the first: tiny: logits are far away"):
        model_ops.main(["--dry-run", "--only", "models"])
    found = last_json(capsys)
    assert found["whole_model"]["tiny"]["wrong"] == "logits are far away"
    assert found["whole_model"]["tiny"]["us"]["ours"] > 0 and found["ops"] == {}


def test_whole_models_are_told_before_what_may_break_the_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is stopped on the way has printed what the bars need."""

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(model_ops, "measure", stop)
    with pytest.raises(KeyboardInterrupt):
        model_ops.main(["--dry-run"])
    found = last_json(capsys)
    assert found["whole_model"]["tiny"]["share_of_bandwidth"] > 0
    assert found["ops"] == {} and found["failed"] == []


def test_an_op_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(case: Any, *rest: Any) -> dict[str, Any]:
        if case.op == "qkv":
            raise Mismatch("not exact")
        return measured(case, *rest)

    measured = model_ops.measure
    monkeypatch.setattr(model_ops, "measure", measure)
    with pytest.raises(SystemExit, match="2 failed, the first: tiny, qkv, 1 rows: Mismatch"):
        model_ops.main(["--dry-run"])
    found = last_json(capsys)
    assert {entry["op"] for entry in found["ops"]["tiny"]} == OPS - {"qkv"}
    assert [line.split(":")[0] for line in found["failed"]] == [
        "tiny, qkv, 1 rows", "tiny, qkv, 2 rows",
    ]  # fmt: skip


def test_control_goes_on_without_an_op(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def rollback_case(*sizes: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(loop_ops, "rollback_case", rollback_case)
    with pytest.raises(SystemExit, match="1 failed, the first: op 0: RuntimeError: no such kernel"):
        loop_ops.main(["--dry-run"])
    assert all("reward" in e["op"] or "score" in e["op"] for e in last_json(capsys)["ops"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("bench", [model_ops, loop_ops])
def test_needs_a_gpu(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main([])
    assert "no CUDA device here; --dry-run" in capsys.readouterr().err


def test_winner_is_one_of_ours() -> None:
    us = {"ours": 2.0, "cuda": 1.5, "cuda, overlapped": 1.6, "torch.mm": 1.0}
    measured = [
        {"op": "qkv", "rows": 1, "us": us},
        {"op": "norm_linear (qkv)", "rows": 1, "us": {"ours": 1.0, "torch ops": 2.0}},
    ]
    assert model_ops.winners(measured) == {"qkv, 1 rows": "cuda"}


def test_weights_a_token_reads() -> None:
    shape, setting = TINY["tiny"], Setting.tiny()
    config, weights = model_decode.random_weights(setting, shape)
    layer = 128 * 64 + 128 + 64 * 64 + 3 * 96 * 64 + 2 * 64
    assert weights.nbytes == 4 * (2 * layer + 64 + 160 * 64)
    assert config.num_parameters == 2 * layer + 64 + 160 * 64
    assert model_decode.kv_bytes(setting, shape, 3) == 3 * 20 * 2 * 2 * 2 * 16 * 4


def test_every_copy_has_weights_of_its_own() -> None:
    setting = Setting.tiny()
    assert setting.copies(1 << 30) == 2
    assert setting.copies(1 << 10) == 32
    assert setting.copies(1) == 256
    [qkv, *_] = matrices(setting, TINY["tiny"])
    assert qkv.weights.shape == (2, 128, 64)
    assert not torch.equal(qkv.weights[0], qkv.weights[1])


def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting.tiny()

    def wrong(x: torch.Tensor, weight: LinearWeight, *, out: torch.Tensor) -> None:
        torch.mm(x, weight.matrix.t(), out=out)
        out[0, -1] += 0.01

    def norm_gate_up(*args: Any, normed: Any, gate_up: Any, out: torch.Tensor) -> None:
        setting.ops.norm_gate_up(*args, normed=normed, gate_up=gate_up, out=out)
        out[0, 0] = torch.nan

    bad = replace(setting.ops, linear=wrong, norm_gate_up=norm_gate_up)
    [_, o, gate_up, *_] = matrices(setting, TINY["tiny"])
    spoiled = Setting.tiny()
    spoiled.__dict__["ops"] = bad
    product_case(setting, o, 1).gate()
    with pytest.raises(Mismatch, match="o, 1 rows, ours: error 0.01 against float64, PyTorch has"):
        product_case(spoiled, o, 1).gate()
    with pytest.raises(Mismatch, match="norm_gate_up, 2 rows, ours: a result is not finite"):
        fused_case(spoiled, gate_up, 2).gate()


def test_attention_is_checked_against_matrices() -> None:
    setting, shape = Setting.tiny(), TINY["tiny"]
    inputs = decode_inputs(setting, shape, 2, copies=3)
    assert len(inputs.kv.k) == 3
    assert inputs.table.shape[1] * inputs.kv.tokens_per_page >= setting.context
    spoiled = Setting.tiny()

    def shifted(q: Any, k: Any, v: Any, key_map: Any, *, scale: float, out: Any) -> None:
        setting.ops.paged_attention(q, k, v, key_map, scale=2 * scale, out=out)

    spoiled.__dict__["ops"] = replace(setting.ops, paged_attention=shifted)
    with pytest.raises(Mismatch, match="paged_attention, 2 sequences: error"):
        attention_case(spoiled, shape, 2).gate()


def test_gate_on_shapes_and_values() -> None:
    one = torch.ones(3)
    with pytest.raises(Mismatch, match=r"x: shape \[3\], it must be \[2\]"):
        gate.require_close(one, one, torch.ones(2).double(), "x")
    errors = gate.require_close(one, one + 0.25, one.double(), "x")
    assert (errors.kernel, errors.torch) == (0.0, 0.25)
    with pytest.raises(Mismatch, match="y: b differ from the twin"):
        gate.require_equal({"a": one, "b": one}, {"a": one, "b": 2 * one}, "y")


def test_control(capsys: pytest.CaptureFixture[str]) -> None:
    loop_ops.main(["--dry-run"])
    found = last_json(capsys)
    assert [entry["op"] for entry in found["ops"]] == [
        "rollback",
        "reward_accept, value head, 24",
        "score, value head, 24",
        "reward_accept, two_class head, 24",
        "score, two_class head, 24",
    ]
    for entry in found["ops"]:
        us = entry["us"]
        assert set(us) == {
            f"{who}, {how}" for who in ("ours", "torch ops") for how in ("graph", "host")
        }
        assert entry["within_10_us"] == (us["ours, graph"] <= 10)
        assert entry["at_least_5_times"] == (entry["times_faster_than_eager"] >= 5)
    classes = 24 * 24 + 24 + 24 + 2 * 24 + 2  # and the norm, in fp32
    assert [entry["head_bytes"] // 4 for entry in found["ops"]] == [0, 49, 49, classes, classes]
    read = 1e6 * 4 * classes / found["bandwidth_bytes_per_second"]
    assert found["ops"][-1]["limit_us"] == pytest.approx(2 * read + 5, rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_eager_rollback_is_that_of_the_twin(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    start = mid_step(LoopOpSizes.tiny(), CPU)
    keep = torch.randint(0, 100, start.kv_len.shape, generator=generator, dtype=torch.int32)
    wanted, found = PageSet(start), PageSet(start)
    rollback(**wanted.named(), keep=keep, tokens_per_page=TOKENS_PER_PAGE)
    column = torch.arange(start.page_table.shape[2], dtype=torch.int32)
    sizes = eager_ops.as_column(TOKENS_PER_PAGE, CPU)
    eager_ops.rollback(**found.padded(), keep=keep, tokens_per_page=sizes, column=column)
    gate.require_equal(found.named(), wanted.named(), "rollback")
    assert int(wanted.named()["num_free"]) > int(start.num_free)
    found.restore()
    gate.require_equal(found.named(), PageSet(start).named(), "restored")


def test_eager_policies_are_those_of_the_twin() -> None:
    rewards = [-0.5, 0.0, 0.3, 0.5, 0.9, 1.0, float("nan")]
    draws = [0.0, 0.2, 0.45, 0.8]
    for kind in PolicyKind:
        for reward in rewards:
            for u in draws:
                one = torch.ones(1)
                found = eager_ops.accepts(
                    torch.tensor([int(kind)]), 0.5 * one, 0.3 * one, reward * one, u * one
                )
                assert int(found) == int(u < accept_probability(int(kind), 0.5, 0.3, reward))


def test_a_wrong_rollback_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets_pages(kv_len: torch.Tensor, keep: torch.Tensor, **_: Any) -> None:
        kv_len.copy_(torch.minimum(kv_len, keep))

    monkeypatch.setattr(eager_ops, "rollback", forgets_pages)
    case = rollback_case(LoopOpSizes.tiny(), CPU)
    with pytest.raises(
        Mismatch, match="rollback, torch ops: num_pages, free_pages, num_free, page_"
    ):
        case.gate()


def test_states_start_in_the_middle_of_a_step() -> None:
    state = mid_step(LoopOpSizes.tiny(), CPU)
    held = [
        state.page_table[role, slot, : int(state.num_pages[role, slot])].tolist()
        for role in range(3)
        for slot in range(3)
    ]
    taken = [page for pages in held for page in pages]
    free = state.free_pages[: int(state.num_free)].tolist()
    assert sorted(taken + free) == list(range(state.free_pages.shape[0]))
    assert copied(state).length.tolist() == [96, 96, 96]


def test_sanitized_launches_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert sanitize.main(["--dry-run"]) == 0
    assert last_json(capsys)["launched"] == ["schedule", "rollback", "fork", "attention"]


def test_without_a_sanitizer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sanitize, "find_sanitizer", lambda: None)
    assert sanitize.main([]) == 1
    assert "compute-sanitizer was not found" in capsys.readouterr().out


@pytest.mark.parametrize("status", [0, 77])
def test_what_the_sanitizer_found(
    status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = sanitize.Run("memcheck", status, ["========= ERROR SUMMARY"])
    monkeypatch.setattr(sanitize, "find_sanitizer", lambda: "compute-sanitizer")
    monkeypatch.setattr(sanitize, "under", lambda tool, _: run)
    assert sanitize.main(["--tool", "memcheck"]) == (1 if status else 0)
    assert last_json(capsys)["runs"] == [vars(run)]
