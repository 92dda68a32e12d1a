"""A target's pass that verifies guesses, beside one that decodes a token.

    python -m bench.verify                # on a GPU
    python -m bench.verify --dry-run      # the same on a CPU, in tiny sizes

Both read all weights once, so the guesses should cost little. A pass is what the loop runs: the
forward of a whole model of random weights, with the rows of a body of its graphs, head and draw at
every place, and the append, which keeps the guesses that are right. They all are: they are what the
model itself draws there. A pass is not timed unless it keeps them, and its logits are those of the
twins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from bench.kernels.attention_cases import DecodeInputs, decode_inputs, last_rows
from bench.kernels.loop_op_state import copied, moved, plain_tables, restore
from bench.kernels.model_decode import random_weights, require_close_logits, runner
from bench.kernels.setting import REAL, Setting
from bench.lib import report
from bench.lib.options import NO_GPU, command_parser
from bench.lib.report import FailureLog
from bench.lib.timing import Calls, Mismatch, alternate_calls
from rsd_engine.engine.build import ROW_BUCKETS
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.decoder import Decoder
from rsd_engine.models.heads import LanguageModel
from rsd_engine.models.weights import DecoderWeights
from rsd_kernels import ops
from rsd_kernels.aot.launches import DecoderShape
from rsd_kernels.model_ops import TWINS
from rsd_kernels.state.enums import Phase, Role, Speculation
from rsd_kernels.state.slots import SlotSizes, SlotState

MODEL = "Qwen2.5-7B"
SLOTS = (1, 4)
GUESSES = (1, 2, 4, 8)  # of a slot


@dataclass(frozen=True)
class _Pass:
    """A pass of the target over all slots, and the state before and after it."""

    model: LanguageModel
    inputs: DecodeInputs
    start: SlotState
    state: SlotState
    logits: Tensor  # [2, places, ids]: ours, and those of the twins
    guesses: int  # of each slot

    @classmethod
    def of(
        cls, config: ModelConfig, weights: DecoderWeights, inputs: DecodeInputs, guesses: int
    ) -> _Pass:
        """Of the sequences in `inputs`, whose last tokens are these guesses."""
        num_slots, context, device = inputs.batch.num_seqs, inputs.context, inputs.table.device
        places = num_slots * (guesses + 1)
        rows = next(size for size in ROW_BUCKETS if size >= places)
        batch = last_rows(
            inputs.table.cpu(), context, inputs.kv.tokens_per_page, guesses + 1, padded_to=rows
        )
        decoder = Decoder(config, weights, max_rows=rows, max_positions=context)
        start = copied(_waiting(num_slots, context, guesses), device)
        return cls(
            model=LanguageModel(decoder, weights.tied_head()),
            inputs=replace(inputs, batch=moved(batch, device)),
            start=start,
            state=copied(start),
            logits=torch.empty(2, places, config.vocab_size, device=device),
            guesses=guesses,
        )

    @cached_property
    def calls(self) -> Calls:
        vocabulary, batch = self.logits.shape[2], self.inputs.batch
        tables = plain_tables(vocabulary, self.logits.device)
        scratch = ops.sample_scratch(self.state, vocabulary, batch.num_places)
        forward = runner(self.model, self.inputs, self.logits[0])

        def run(index: int) -> None:
            forward(index)
            ops.sample_append(
                self.state, batch, self.logits[0], tables, Role.TARGET, scratch, verifies=True
            )

        return Calls(run, reset=partial(restore, self.state, self.start))

    def guess_right(self) -> None:
        """Makes the guesses what the model draws: the first is right after one pass, and so on."""
        batch, length = self.inputs.batch, self.inputs.context - self.guesses
        num_slots = batch.num_seqs
        rows = batch.token[: batch.num_places].view(num_slots, -1)
        for _ in range(self.guesses):
            self._run()
            drawn = batch.place_token.view(num_slots, -1)[:, :-1]
            rows[:, 1:] = drawn
            self.start.tokens[:, length : length + self.guesses] = drawn

    def require_kept(self) -> float:
        """Relative distance of the logits from those of the twins.

        Raises:
            Mismatch: it is too large, or a guess that is right is not kept.
        """
        self._run()
        grown = (self.state.length - self.start.length).tolist()
        if grown != [self.guesses + 1] * len(grown):
            raise Mismatch(f"{self.guesses} right guesses and a token more became {grown} tokens")
        ours = runner(self.model, self.inputs, self.logits[0])

        def plain(index: int) -> None:
            decoder, before = self.model.decoder, self.model.decoder.ops
            decoder.ops = TWINS
            runner(self.model, self.inputs, self.logits[1])(index)
            decoder.ops = before

        return require_close_logits(ours, plain, self.logits)

    def _run(self) -> None:
        restore(self.state, self.start)
        self.calls.call(0)


def _waiting(num_slots: int, context: int, guesses: int) -> SlotState:
    """Slots whose contexts end with guesses that the target is about to read; all greedy."""
    sizes = SlotSizes(num_slots, context + 64, 1, 1, 1, 1)
    state = SlotState.allocate(sizes, torch.device("cpu"))
    for name, value in {
        "length": context - guesses, "guess_end": context if guesses else 0, "active": 1,
        "length_limit": context + 64, "max_step_tokens": context + 64, "phase": Phase.TARGET,
        "speculation": Speculation.REJECTED, "num_logprobs": -1, "stop_tokens": -1,
        "repetition_penalty": 1, "top_p": 1, "num_seqs": num_slots,
        "num_places": num_slots * (guesses + 1),
    }.items():  # fmt: skip
        getattr(state, name).fill_(value)
    return state


def measure(setting: Setting, shape: DecoderShape) -> dict[str, Any]:
    """By the number of slots: a pass that decodes, and those that verify, as times of it.

    Raises:
        Mismatch: a pass does not do what it should.
    """
    config, weights = random_weights(setting, shape)
    return {str(slots): _measure(setting, shape, config, weights, slots) for slots in SLOTS}


def run_once(setting: Setting, shape: DecoderShape) -> None:
    """Every pass that `measure` times, once and untimed."""
    config, weights = random_weights(setting, shape)
    for slots in SLOTS:
        for one in _passes(setting, shape, config, weights, slots).values():
            one.calls.call(0)


def _passes(
    setting: Setting, shape: DecoderShape, config: ModelConfig, weights: DecoderWeights, slots: int
) -> dict[int, _Pass]:
    """By the number of guesses."""
    inputs = decode_inputs(setting, shape, slots, copies=shape.num_layers)
    return {guesses: _Pass.of(config, weights, inputs, guesses) for guesses in (0, *GUESSES)}


def _measure(
    setting: Setting, shape: DecoderShape, config: ModelConfig, weights: DecoderWeights, slots: int
) -> dict[str, Any]:
    passes = _passes(setting, shape, config, weights, slots)
    errors = {}
    for guesses, one in passes.items():
        one.guess_right()
        errors[guesses] = one.require_kept()
    contenders = {str(guesses): one.calls for guesses, one in passes.items()}
    timings = alternate_calls(contenders, device=setting.device, copies=1, runs=setting.runs)
    decode = timings.pop("0")
    return {
        "context": setting.context,
        "decode_us": 1e6 * decode.median,
        "spread": decode.spread,
        "guesses": {
            guesses: {
                "rows": passes[int(guesses)].inputs.batch.num_rows,
                "us": 1e6 * timing.median,
                "times_decode": timing.median / decode.median,
                "spread": timing.spread,
                "relative_error": errors[int(guesses)],
            }
            for guesses, timing in timings.items()
        },
    }


def table(measured: dict[str, dict[str, Any]]) -> str:
    rows = [
        [slots, guesses, str(entry["rows"]), f"{entry['us']:.0f}", f"{entry['times_decode']:.3f}"]
        for slots, found in measured.items()
        for guesses, entry in found["guesses"].items()
    ]
    return report.format_table(["slots", "guesses", "rows", "us", "x decode"], rows)


def run(setting: Setting) -> dict[str, Any]:
    """Every model of the setting."""
    failures = FailureLog()
    models = failures.run_each(
        (name, partial(measure, setting, shape)) for name, shape in setting.shapes.items()
    )
    for name, measured in models.items():
        print(f"{name}, {setting.context} tokens of context, {setting.dtype}")
        print(table(measured), flush=True)
    return {"bench": "verify", "models": models, "failed": failures.messages}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("verify", __doc__)
    parser.add_argument("--dry-run", action="store_true", help="run tiny sizes on a CPU")
    parser.add_argument("--model", choices=sorted(REAL), default=MODEL)
    parser.add_argument("--runs", type=int, default=15, help="timed runs of each pass")
    options = parser.parse_args(arguments)
    if options.dry_run:
        report.print_json_or_fail(run(Setting.tiny()))
        return 0
    if not torch.cuda.is_available():
        parser.error(NO_GPU)
    shapes = {options.model: REAL[options.model]}
    report.print_json_or_fail(run(Setting.real(shapes, options.runs)))
    return 0
