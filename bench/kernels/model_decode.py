"""Decoding one token with a whole model of random weights: its share of the memory bandwidth.

At batch 1 a token takes at least the time to read the weights and its K and V. `measure_early`
measures the same pass with kernels that start before the previous one has ended; their logits must
be bitwise the same before they are timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bench.kernels.attention_cases import DecodeInputs, decode_inputs
from bench.kernels.early_launch import (
    PRODUCT_VARIANTS,
    VARIANTS,
    require_same_logits,
    switched,
)
from bench.kernels.setting import Setting
from bench.lib.timing import Calls, Mismatch, Timing, alternate_calls, prepare
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.decoder import Decoder
from rsd_engine.models.heads import LanguageModel
from rsd_engine.models.weights import DecoderWeights
from rsd_kernels.aot.launches import DecoderShape
from rsd_kernels.cuda.decode_projection import MAX_ROWS
from rsd_kernels.launch import can_overlap
from rsd_kernels.model_ops import TWINS
from rsd_kernels.qkv.twin import in_two

_CALLS = 4  # tokens of one run
_TOLERANCE = 0.05  # of the logits' norm in bf16; fp32 stays far below


def measure(
    setting: Setting, shape: DecoderShape, num_rows: int, bandwidth: float
) -> dict[str, Any]:
    """`num_rows` sequences of `setting.context` tokens decode one token each.

    Wrong logits are told, in `wrong`, and timed all the same: kernels that are not exact take the
    time that they will take when they are.
    """
    decoding = Decoding.of(setting, shape, num_rows)
    inputs, out = decoding.inputs, decoding.out
    twins = decoding.model()
    twins.decoder.ops = TWINS
    plain = runner(twins, inputs, out[1])
    wrong, error = _compared(decoding.ours, plain, out)
    contenders = {
        name: Calls(switched(decoding.ours, early=False, constants=constants))
        for name, constants in PRODUCT_VARIANTS.items()
    }
    if setting.cuda_ops is not None and num_rows <= MAX_ROWS:
        by_cuda = decoding.model()
        by_cuda.decoder.ops = setting.cuda_ops
        cuda = runner(by_cuda, inputs, out[0])
        if _compared(cuda, plain, out)[0] is None:
            contenders["ours, CUDA products"] = Calls(switched(cuda, early=False))
    calls = Calls(switched(decoding.ours, early=False))
    in_two_calls = Calls(switched(decoding.in_pieces, early=False))
    timings = decoding.time(
        {
            "ours": calls,
            "ours, launched by the host": replace(calls, captured=False),
            "ours, qkv in two launches": in_two_calls,
            **contenders,
            "torch ops": Calls(plain, captured=False),
        }
    )
    seconds = timings["ours"].median
    return {
        "rows": num_rows,
        "context": setting.context,
        "num_bytes": decoding.num_bytes,
        "ceiling_us": 1e6 * decoding.num_bytes / bandwidth,
        "share_of_bandwidth": decoding.num_bytes / bandwidth / seconds,
        "tokens_per_second": num_rows / seconds,
        "relative_error": error,
        "wrong": wrong,
        "us": {name: 1e6 * timing.median for name, timing in timings.items()},
        "spread": {name: timing.spread for name, timing in timings.items()},
    }


def measure_early(
    setting: Setting, shape: DecoderShape, num_rows: int, bandwidth: float
) -> dict[str, Any]:
    """The same pass with kernels that start early, beside those that do not.

    It is apart from `measure` because such kernels may hang a device or leave it in a bad state.
    """
    decoding = Decoding.of(setting, shape, num_rows)
    calls = Calls(switched(decoding.ours, early=False))
    early = {
        name: Calls(switched(decoding.ours, early=True, prefetch=num_bytes))
        for name, num_bytes in VARIANTS.items()
    }
    refused = _refused(calls, early, decoding.inputs, decoding.out[0])
    timed = {name: early[name] for name in early if name not in refused}
    timings = decoding.time({"ours": calls, **timed}) if timed else {}
    return _early_beside_plain(timings, refused, decoding.num_bytes / bandwidth)


def run_once(setting: Setting, shape: DecoderShape, num_rows: int) -> None:
    """Every pass by Triton that `measure` and `measure_early` time, once and untimed."""
    decoding = Decoding.of(setting, shape, num_rows)
    switched(decoding.ours, early=False)(0)
    switched(decoding.in_pieces, early=False)(0)
    for num_bytes in VARIANTS.values():
        switched(decoding.ours, early=True, prefetch=num_bytes)(0)


@dataclass(frozen=True)
class Decoding:
    """A model with random weights, and sequences that decode one token each."""

    setting: Setting
    config: ModelConfig
    weights: DecoderWeights
    inputs: DecodeInputs
    out: Tensor  # [2, num_rows, vocab] logits: of ours, and of what ours is compared with
    num_bytes: int  # read for one token

    @classmethod
    def of(cls, setting: Setting, shape: DecoderShape, num_rows: int) -> Decoding:
        config, weights = random_weights(setting, shape)
        inputs = decode_inputs(setting, shape, num_rows, copies=shape.num_layers)
        out = torch.empty(2, num_rows, shape.vocab, device=setting.device)
        num_bytes = weights.nbytes + kv_bytes(setting, shape, num_rows)
        return cls(setting, config, weights, inputs, out, num_bytes)

    @cached_property
    def ours(self) -> Callable[[int], None]:
        return runner(self.model(), self.inputs, self.out[0])

    @cached_property
    def in_pieces(self) -> Callable[[int], None]:
        """The same with q, k and v in two launches."""
        model = self.model()
        ops = model.decoder.ops
        model.decoder.ops = replace(ops, qkv_projection=in_two(ops.norm_linear, ops.rope_kv_write))
        return runner(model, self.inputs, self.out[0])

    def model(self) -> LanguageModel:
        num_rows = self.inputs.batch.num_rows
        context = self.setting.context
        decoder = Decoder(self.config, self.weights, max_rows=num_rows, max_positions=context)
        return LanguageModel(decoder, self.weights.tied_head())

    def time(self, contenders: dict[str, Calls]) -> dict[str, Timing]:
        runs = max(2, self.setting.runs // 2)
        return alternate_calls(contenders, device=self.setting.device, copies=_CALLS, runs=runs)


def random_weights(setting: Setting, shape: DecoderShape) -> tuple[ModelConfig, DecoderWeights]:
    """A Qwen2 of this shape, whose LM head is its embedding."""
    config = ModelConfig.from_dict(
        {
            "architectures": ["Qwen2ForCausalLM"],
            "vocab_size": shape.vocab,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_q_heads,
            "num_key_value_heads": shape.num_kv_heads,
            "max_position_embeddings": max(4096, setting.context),
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "tie_word_embeddings": True,
        }
    )
    weights = DecoderWeights.allocate(config, setting.dtype, setting.device)
    generator = torch.Generator(setting.device).manual_seed(11)
    for name, place in weights.places(config).items():
        if name.endswith("norm.weight"):
            place.fill_(1)
        else:
            place.normal_(0, place.shape[-1] ** -0.5, generator=generator)
    return config, weights


def kv_bytes(setting: Setting, shape: DecoderShape, num_rows: int) -> int:
    token = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * setting.dtype.itemsize
    return num_rows * setting.context * token


def runner(model: LanguageModel, inputs: DecodeInputs, out: Tensor) -> Callable[[int], None]:
    return lambda _: model.logits(inputs.batch, inputs.kv, inputs.table, out)


def _refused(
    plain: Calls, early: dict[str, Calls], inputs: DecodeInputs, logits: Tensor
) -> dict[str, str]:
    """Variants that are not timed, and why: their logits are not bitwise the same."""
    if not _starts_early(logits):
        return dict.fromkeys(early, "this device starts no kernel early")
    replay, refused = prepare(plain, 1, logits.device), {}
    for name, calls in early.items():
        try:
            graph = prepare(calls, 1, logits.device)
            require_same_logits(replay, graph, inputs.batch.token, logits)
        except Mismatch as error:
            refused[name] = str(error)
    return refused


def _starts_early(tensor: Tensor) -> bool:
    return tensor.is_cuda and can_overlap()


def _early_beside_plain(
    timings: dict[str, Timing], refused: dict[str, str], least: float
) -> dict[str, Any]:
    """Which variant is fastest, and by how much.

    Args:
        timings: of captured graphs.
        refused: why the other variants were not timed.
        least: seconds to read all bytes of a token.
    """
    seconds = {name: timings[name].median for name in VARIANTS if name in timings}
    times = {name: timings["ours"].median / taken for name, taken in seconds.items()}
    best = max(times, key=times.__getitem__, default=None)
    return {
        "refused": refused,
        "times_faster": times,
        "share_of_bandwidth": {name: least / taken for name, taken in seconds.items()},
        "us": {name: 1e6 * timing.median for name, timing in timings.items()},
        "best": best,
        "faster": best is not None and times[best] > 1,
    }


def _compared(
    ours: Callable[[int], None], plain: Callable[[int], None], out: Tensor
) -> tuple[str | None, float | None]:
    """What is wrong with the logits, if anything is, else their distance."""
    try:
        return None, require_close_logits(ours, plain, out)
    except Mismatch as error:
        print(f"not exact: {error}", flush=True)
        return str(error), None


def require_close_logits(
    ours: Callable[[int], None], plain: Callable[[int], None], out: Tensor
) -> float:
    """Relative distance of the logits (out[0]) from those of the twins (out[1]).

    Raises:
        Mismatch: it is too large.
    """
    out.fill_(torch.nan)
    ours(0)
    plain(0)
    error = float((out[0] - out[1]).norm() / out[1].norm())
    if not error <= _TOLERANCE:
        raise Mismatch(f"logits are {error:.3g} of their norm away from those of the twins")
    return error
