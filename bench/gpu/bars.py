"""The bars that must be met on a GPU, beside what the parts of `bench.gpu` measured.

Each bar takes its figure from the result of one part, and there from the best variant of the
program that was right: with kernels that start early, for instance. If the part had no time, or
failed before it measured the figure, the bar is not measured: it is neither met nor missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.lib import report

Found = Mapping[str, Any]

DECODE_SHARE = {"Qwen2.5-1.5B": 0.75, "Qwen2.5-7B": 0.90}
# Of Qwen2.5-7B with layers in few bits, by format: share of the read bandwidth, and times as fast
# as plain weights. In 4 bits the cores that unpack weights are expected to be slower than an
# H200's memory.
FORMATS = {"fp8": (0.80, 1.5), "int8": (0.80, 1.5), "int4": (0.50, 1.75)}
LOOP_OP_US = 10.0
TIMES_EAGER = 5.0
_LOOP_OPS = {
    "rollback": "rollback",
    "reward and decision, value head": "reward_accept, value head",
    "reward, decision, commit or rollback, value head": "score, value head",
}
_TWO_LAYER = "reward_accept, two_class head"
VERIFY_GUESSES, VERIFY_TIMES = "4", 1.15
# Of the device loop with one slot; all but the last are upper bounds.
LOOP: Mapping[str, float] = {
    "launches_a_step": 1 / 8,
    "idle_share": 0.02,
    "times_passes_alone": 1.05,
    "times_faster_than_baseline": 5.0,
}
LOOP_AT_LEAST = "times_faster_than_baseline"
_LOOP_NAMES = {
    "launches_a_step": "host launches a step, device loop",
    "idle_share": "share of the time in which the device stands idle",
    "times_passes_alone": "seconds of a step over those of its passes replayed alone",
    "times_faster_than_baseline": "times faster than the paper's arrangement, batch 1",
}
HEADERS = ("bar", "asked", "found", "", "part or variant")
WORDS = {True: "met", False: "MISSED", None: "not measured"}


@dataclass(frozen=True)
class Bar:
    """One bar: what is asked for, and what was found.

    Attributes:
        part: that measures the figure.
        found: None if it was not measured.
        at_least: whether `asked` is a lower bound; otherwise it is an upper bound.
        variant: of the program that the figure is of: the best of those that passed their gate.
    """

    name: str
    part: str
    asked: float | None
    found: float | None
    unit: str = ""
    at_least: bool = False
    variant: str = ""

    @property
    def met(self) -> bool | None:
        if self.found is None or self.asked is None:
            return None
        return self.found >= self.asked if self.at_least else self.found <= self.asked

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"met": self.met}

    def row(self) -> list[str]:
        """The cells under `HEADERS`."""
        asked = "" if self.asked is None else f"{'>=' if self.at_least else '<='} {self.asked:.4g}"
        found = "" if self.found is None else f"{self.found:.4g} {self.unit}".strip()
        return [self.name, asked, found, WORDS[self.met], self.variant or self.part]


def evaluate(results: Mapping[str, Found | None]) -> list[Bar]:
    """All bars, always in the same order.

    Args:
        results: the JSON that each part printed, by its name; None or no entry if it printed none.
    """
    found = {part: result for part, result in results.items() if result is not None}
    return [
        *_decode(found.get("decode", {})),
        *_loop_ops(found.get("control", {})),
        _verify(found.get("verify", {})),
        *_weight_formats(found.get("weight_formats", {})),
        *_device_loop(found.get("device_loop", {})),
    ]


def table(bars: Sequence[Bar]) -> str:
    return report.format_table(HEADERS, [bar.row() for bar in bars])


def _decode(decode: Found) -> Iterator[Bar]:
    for model, asked in DECODE_SHARE.items():
        name = f"decode, {model}, batch 1, 1k context: share of read bandwidth"
        shares = _decode_shares(decode, model)
        best = max(shares, key=shares.__getitem__, default="")
        yield Bar(name, "decode", asked, shares.get(best), at_least=True, variant=best)


def _decode_shares(decode: Found, model: str) -> dict[str, float]:
    """By variant, but for those whose logits were wrong."""
    whole = decode.get("whole_model", {}).get(model, {})
    wrong = whole.get("wrong") is not None
    shares = {}
    for variant in ("ours", "ours, CUDA products"):
        if variant in whole.get("us", {}) and not (wrong and variant == "ours"):
            shares[variant] = whole["ceiling_us"] / whole["us"][variant]
    early = decode.get("early", {}).get(f"{model}, early", {})  # gated by the bits of "ours"
    return shares if wrong else shares | early.get("share_of_bandwidth", {})


def _loop_ops(control: Found) -> Iterator[Bar]:
    ops = control.get("ops", [])
    for name, prefix in _LOOP_OPS.items():
        worst = _worst(ops, prefix, _ours, max)
        yield Bar(f"{name}, 16 slots", "control", LOOP_OP_US, worst and _ours(worst), "us")
    worst = _worst(ops, _TWO_LAYER, lambda op: _ours(op) / op["limit_us"], max)
    yield Bar(
        "reward and decision, two-layer head: twice the read of its weights + 5 us",
        "control",
        worst and worst["limit_us"],
        worst and _ours(worst),
        "us",
    )
    for name, prefix in _LOOP_OPS.items():
        worst = _worst(ops, prefix, _times_eager, min)
        times = worst and _times_eager(worst)
        yield Bar(f"{name}: times faster than PyTorch ops", "control", TIMES_EAGER, times,
                  at_least=True)  # fmt: skip


def _verify(verify: Found) -> Bar:
    slots = verify.get("models", {}).get("Qwen2.5-7B", {})
    found = slots.get("1", {}).get("guesses", {}).get(VERIFY_GUESSES, {}).get("times_decode")
    what = f"pass that verifies {VERIFY_GUESSES} guesses, Qwen2.5-7B, batch 1"
    return Bar(f"{what}: times one that decodes", "verify", VERIFY_TIMES, found)


def _weight_formats(measured: Found) -> Iterator[Bar]:
    """Those whose logits were wrong were not timed."""
    one = measured.get("models", {}).get("Qwen2.5-7B", {}).get("1", {})
    variant = "weight_formats, early" if measured.get("starts_early") else ""
    for form, (share, times) in FORMATS.items():
        found, name = one.get(form, {}), f"decode, Qwen2.5-7B in {form}, batch 1"
        for what, key, asked in (
            ("share of read bandwidth", "share_of_bandwidth", share),
            ("times as fast as plain weights", "times_faster", times),
        ):
            yield Bar(f"{name}: {what}", "weight_formats", asked, found.get(key), at_least=True,
                      variant=variant)  # fmt: skip


def _device_loop(device_loop: Found) -> Iterator[Bar]:
    judged = device_loop.get("bars", {})
    variant = "device_loop, early" if device_loop.get("starts_early") else ""
    for key, asked in LOOP.items():
        found, at_least = judged.get(key, {}).get("worst"), key == LOOP_AT_LEAST
        yield Bar(_LOOP_NAMES[key], "device_loop", asked, found, at_least=at_least, variant=variant)


def _worst(
    ops: Sequence[Any],
    prefix: str,
    figure: Callable[[Any], float],
    choose: Callable[..., Any],
) -> Any:
    """The worst of the ops with this prefix, which come in several widths; None without any."""
    return choose((op for op in ops if op["op"].startswith(prefix)), key=figure, default=None)


def _ours(op: Any) -> float:
    return float(op["us"]["ours, graph"])


def _times_eager(op: Any) -> float:
    return float(op["times_faster_than_eager"])
