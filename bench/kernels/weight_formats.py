"""Decoding one token with weights in few bits, beside the same sizes in bf16.

    python -m bench.weight_formats                # on a GPU
    python -m bench.weight_formats --dry-run      # the same on a CPU, in tiny sizes

Whole models of random weights, as in `bench.kernels`: a token takes at least the time to read the
weights and its K and V. Before a format is timed, its logits are held against those of PyTorch ops
over the same weights, expanded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from bench.kernels.attention_cases import decode_inputs
from bench.kernels.early_launch import switched
from bench.kernels.model_decode import (
    Decoding,
    kv_bytes,
    random_weights,
    require_close_logits,
    runner,
)
from bench.kernels.setting import REAL, Setting
from bench.lib import report
from bench.lib.options import NO_GPU, command_parser
from bench.lib.report import FailureLog
from bench.lib.timing import Calls, Mismatch
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.weights import DecoderWeights
from rsd_engine.roofline.measured import read_bandwidth
from rsd_kernels.aot.launches import DecoderShape
from rsd_kernels.formats.weight import Weight
from rsd_kernels.grouped.matrix import MIN_GROUP, GroupedMatrix, ValueKind
from rsd_kernels.grouped.weight import GroupedWeight
from rsd_kernels.launch import overlapping
from rsd_kernels.linear.weight import LinearWeight
from rsd_kernels.model_ops import TWINS

MODELS = ("Qwen2.5-1.5B", "Qwen2.5-7B")
PLAIN = "plain"
ROWS = (1, 4, 16)
_ZERO = 7  # of values that have zeros of their own
_LINEARS = ("qkv", "o", "gate_up", "down")


@dataclass(frozen=True)
class Format:
    """How the matrices of layers are held.

    Attributes:
        zeros: whether values have zeros of their own.
        in_order: whether the inputs of a group follow one another; they do not in act-order.
        block: outputs that share a scale.
    """

    kind: ValueKind
    zeros: bool = False
    in_order: bool = True
    block: int = 1


FORMATS = {
    "int4": Format(ValueKind.INT4),
    "int4 with zeros": Format(ValueKind.INT4, zeros=True),
    "int4 in act-order": Format(ValueKind.INT4, in_order=False),
    "int8": Format(ValueKind.INT8),
    "fp8": Format(ValueKind.FP8, block=128),
}


@dataclass(frozen=True)
class _Held:
    """A model's weights in every format, plain ones among them."""

    setting: Setting
    shape: DecoderShape
    config: ModelConfig
    weights: dict[str, DecoderWeights]

    @classmethod
    def of(cls, setting: Setting, shape: DecoderShape) -> _Held:
        config, plain = random_weights(setting, shape)
        few = {name: in_format(setting, plain, form) for name, form in FORMATS.items()}
        return cls(setting, shape, config, {PLAIN: plain, **few})

    def decodings(self, num_rows: int) -> dict[str, Decoding]:
        """By format: `num_rows` sequences decode one token each."""
        setting, shape = self.setting, self.shape
        inputs = decode_inputs(setting, shape, num_rows, copies=shape.num_layers)
        out = torch.empty(2, num_rows, shape.vocab, device=setting.device)
        of_kv = kv_bytes(setting, shape, num_rows)
        return {
            name: Decoding(setting, self.config, weights, inputs, out, weights.nbytes + of_kv)
            for name, weights in self.weights.items()
        }


def measure(setting: Setting, shape: DecoderShape, bandwidth: float) -> dict[str, Any]:
    """What a token takes, by the number of sequences and by format."""
    held = _Held.of(setting, shape)
    return {str(rows): _measure(held.decodings(rows), bandwidth) for rows in setting.rows}


def run_once(setting: Setting, shape: DecoderShape) -> None:
    """Every kernel of `measure`, once and untimed, plain and early; all layers are alike."""
    held = _Held.of(setting, replace(shape, num_layers=2))
    for rows in setting.rows:
        for decoding in held.decodings(rows).values():
            for early in (False, True):
                switched(decoding.ours, early=early)(0)


def _measure(decodings: dict[str, Decoding], bandwidth: float) -> dict[str, Any]:
    """By format; one whose logits are wrong is not timed, and `wrong` says why."""
    errors, wrong = {}, {}
    for name in decodings.keys() - {PLAIN}:
        try:
            errors[name] = _error(decodings[name])
        except Mismatch as error:
            wrong[name] = str(error)
    right = {name: decoding for name, decoding in decodings.items() if name not in wrong}
    timings = right[PLAIN].time({name: Calls(found.ours) for name, found in right.items()})
    taken = {name: timing.median for name, timing in timings.items()}
    least = {name: found.num_bytes / bandwidth for name, found in decodings.items()}
    return {
        name: {"wrong": wrong[name]}
        if name in wrong
        else {
            "num_bytes": decodings[name].num_bytes,
            "ceiling_us": 1e6 * least[name],
            "us": 1e6 * taken[name],
            "share_of_bandwidth": least[name] / taken[name],
            "times_faster": taken[PLAIN] / taken[name],
            "spread": timings[name].spread,
            "relative_error": errors.get(name),
        }
        for name in decodings
    }


def random_matrix(setting: Setting, like: torch.Tensor, form: Format) -> GroupedMatrix:
    """[N, K] random values, about as large as those of `random_weights`."""
    num_outputs, num_inputs = like.shape
    group = MIN_GROUP if num_inputs % 128 else 128
    values = setting.normal(*like.shape)
    spread = {ValueKind.FP8: 1.0, ValueKind.INT8: 32.0, ValueKind.INT4: 2.0}[form.kind]
    if form.kind is ValueKind.FP8:
        stored = values.to(torch.float8_e4m3fn)
    elif form.kind is ValueKind.INT8:
        stored = (values * spread).round().clamp(-128, 127).to(torch.int8)
    else:
        middle = _ZERO if form.zeros else 8
        stored = (values * spread + middle).round().clamp(0, 15).to(torch.uint8)
    block, groups = min(form.block, num_outputs), num_inputs // group
    scales = setting.normal(-(-num_outputs // block), groups, scale=0.1).float() + 1
    scales = scales * num_inputs**-0.5 / spread
    zeros = None
    if form.zeros:
        zeros = torch.full((num_outputs, groups), _ZERO, dtype=torch.int8, device=like.device)
    order = None
    if not form.in_order:
        order = torch.arange(num_inputs - 1, -1, -1, dtype=torch.int32, device=like.device)
    return GroupedMatrix.pack(
        form.kind, stored, scales if form.kind is ValueKind.FP8 else scales.half(), zeros,
        group_size=group, scale_rows=block, order=order,
    )  # fmt: skip


def in_format(setting: Setting, weights: DecoderWeights, form: Format) -> DecoderWeights:
    """The same sizes, biases and norms with random matrices in few bits."""

    def made(weight: Weight) -> GroupedWeight:
        assert isinstance(weight, LinearWeight)
        return GroupedWeight(random_matrix(setting, weight.matrix, form), weight.bias)

    return _with_weights(weights, made)


def _with_weights(weights: DecoderWeights, change: Callable[[Weight], Weight]) -> DecoderWeights:
    layers = tuple(
        replace(layer, **{name: change(getattr(layer, name)) for name in _LINEARS})  # type: ignore[arg-type]
        for layer in weights.layers
    )
    return replace(weights, layers=layers)


def _error(decoding: Decoding) -> float:
    """Raises Mismatch unless the logits are close to those of the expanded weights."""
    dtype = decoding.setting.dtype
    expanded = _with_weights(decoding.weights, lambda weight: weight.to(dtype))
    twins = replace(decoding, weights=expanded).model()
    twins.decoder.ops = TWINS
    plain = runner(twins, decoding.inputs, decoding.out[1])
    return require_close_logits(decoding.ours, plain, decoding.out)


def table(measured: dict[str, dict[str, Any]]) -> str:
    rows = [
        [num_rows, name, *_cells(entry)]
        for num_rows, found in measured.items()
        for name, entry in found.items()
    ]
    return report.format_table(["rows", "weights", "MB", "us", "bandwidth", "x plain"], rows)


def _cells(entry: dict[str, Any]) -> list[str]:
    if "wrong" in entry:
        return ["", "wrong", "", ""]
    return [
        f"{entry['num_bytes'] / 1e6:.1f}", f"{entry['us']:.0f}",
        f"{1e2 * entry['share_of_bandwidth']:.0f} %", f"{entry['times_faster']:.2f}",
    ]  # fmt: skip


def run(setting: Setting) -> dict[str, Any]:
    """Every model of the setting.

    A line of JSON is printed after each, in case the run is stopped or the device is lost.
    """
    bandwidth = read_bandwidth(setting.device, None if setting.runs > 2 else 2**24)
    failures = FailureLog()
    result: dict[str, Any] = {
        "bench": "weight_formats", "bandwidth_bytes_per_second": bandwidth,
        "starts_early": overlapping(1), "models": {}, "failed": failures.messages,
    }  # fmt: skip
    for name, shape in setting.shapes.items():
        found = failures.run_each([(name, partial(measure, setting, shape, bandwidth))])
        result["models"] |= found
        for measured in found.values():
            print(f"{name}, {setting.context} tokens of context, {setting.dtype}")
            print(table(measured), flush=True)
            failures.messages += [
                f"{name}, {form}, {rows} rows: {entry['wrong']}"
                for rows, entries in measured.items()
                for form, entry in entries.items()
                if "wrong" in entry
            ]
        report.print_json(result)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("weight_formats", __doc__)
    parser.add_argument("--dry-run", action="store_true", help="run tiny sizes on a CPU")
    parser.add_argument("--models", nargs="+", choices=sorted(REAL), default=list(MODELS))
    parser.add_argument("--runs", type=int, default=12, help="timed runs of each format")
    options = parser.parse_args(arguments)
    if options.dry_run:
        report.print_json_or_fail(run(Setting.tiny()))
        return 0
    if not torch.cuda.is_available():
        parser.error(NO_GPU)
    report.print_json_or_fail(run(real(options.models, options.runs)))
    return 0


def real(models: Sequence[str], runs: int) -> Setting:
    """On a GPU."""
    return replace(Setting.real({name: REAL[name] for name in models}, runs), rows=ROWS)
