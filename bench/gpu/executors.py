"""The demo family on every executor, and the first difference between them.

    python -m bench.gpu.executors
    python -m bench.gpu.executors --few-bits    # draft in fp8, target in int4, PRM in int8
    python -m bench.gpu.executors --dry-run     # fewer problems, on a CPU

One engine of four slots solves the same problems by each executor, with the most likely tokens and
with drawn ones. All must write the same tokens, give the same rewards to the last bit, and keep and
reject the same steps. What the first one finds is also held beside an engine on the CPU: sums
differ there in their last bits, so that comparison only informs. With `--few-bits` layers are
rounded when they are loaded; a CPU multiplies with what they stand for in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import torch

from bench.lib import report
from bench.lib.few_bits import FewBits
from bench.lib.options import NO_GPU, command_parser, default_device
from bench.loop.runs import using
from rsd_engine import Engine, RequestOutput, SamplingParams
from rsd_engine.demo import ModelRole, checkpoint_dir
from rsd_engine.demo.problems import generate as make_problems
from rsd_engine.loop.executors.factory import make_executor
from rsd_engine.loop.rsd import build_program
from rsd_engine.models.checkpoints.base import Checkpoint
from rsd_engine.models.checkpoints.open import open_checkpoint

SLOTS, MODEL_LEN, KV_BYTES = 4, 400, 64 * 2**20
_FORMATS: dict[ModelRole, str] = {"draft": "fp8", "target": "int4", "prm": "int8"}
_ON_GPU, _ON_CPU = ("eager", "host-graphs", "device-loop"), ("simulated-loop", "eager")

Solved = dict[str, list[RequestOutput]]  # by how tokens are chosen


@dataclass(frozen=True)
class Difference:
    """The first place where two runs differ.

    Attributes:
        tokens: how they were chosen, "greedy" or "sampled".
        step: its number; -1 for the whole output.
        what: "token 7 of the step", "reward", ...
        expected, found: the values; None past the end.
    """

    tokens: str
    request: int
    step: int
    what: str
    expected: Any
    found: Any


def first_difference(expected: Solved, found: Solved, *, rewards: bool = True) -> Difference | None:
    """Compares two runs, output by output and step by step.

    Args:
        rewards: whether they must be equal, to the last bit.
    """
    for tokens, outputs in expected.items():
        pairs = zip(outputs, found[tokens], strict=True)
        for request, (ours, theirs) in enumerate(pairs):
            facts = zip_longest(
                _facts(ours, rewards), _facts(theirs, rewards), fillvalue=(-1, "end", None)
            )
            for one, two in facts:
                if repr(one) != repr(two):  # NaN, an unscored step, equals itself
                    step, what, _ = one if one[1] != "end" else two
                    return Difference(tokens, request, step, what, one[2], two[2])
    return None


def _facts(output: RequestOutput, rewards: bool) -> Iterator[tuple[int, str, Any]]:
    """(step, what, value) of one output, in the order in which it was decided."""
    [sample] = output.outputs
    for at, step in enumerate(sample.steps):
        if step.rejected is not None:
            yield from _tokens(at, "rejected step", step.rejected.token_ids)
            if rewards:
                yield at, "reward of the rejected step", step.rejected.reward
        yield at, "writer", step.source
        yield from _tokens(at, "step", step.token_ids)
        if rewards:
            yield at, "reward", step.reward
    yield -1, "finish reason", sample.finish_reason


def _tokens(step: int, of: str, ids: Sequence[int]) -> Iterator[tuple[int, str, Any]]:
    for place, token in enumerate(ids):
        yield step, f"token {place} of the {of}", token


def open_family(few_bits: bool, *, fill: bool = True) -> list[Checkpoint]:
    """Draft, target and PRM of the demo.

    Args:
        few_bits: whether their layers are rounded.
        fill: whether rounded layers get their values.
    """
    plain = {role: open_checkpoint(checkpoint_dir(role)) for role in _FORMATS}
    if not few_bits:
        return list(plain.values())
    return [FewBits(plain[role], word, fill=fill) for role, word in _FORMATS.items()]


def open_engine(device: torch.device, executor: str, family: Sequence[Checkpoint]) -> Engine:
    """The demo family in fp32, which keeps nothing from one run to the next."""
    return Engine(
        *family, device=device, dtype="float32", executor=executor, max_num_seqs=SLOTS,
        max_model_len=MODEL_LEN, kv_cache_memory_bytes=KV_BYTES, enable_prefix_caching=False,
    )  # fmt: skip


def solver(problems: int, max_tokens: int) -> Callable[[Engine], Solved]:
    """What every executor does."""
    chats = [
        [{"role": "user", "content": problem.question}]
        for problem in make_problems(0, "test", problems)
    ]
    params = {
        "greedy": SamplingParams(temperature=0.0, max_tokens=max_tokens, seed=1),
        "sampled": SamplingParams(temperature=1.0, top_p=0.95, max_tokens=max_tokens, seed=1),
    }

    def solve(engine: Engine) -> Solved:
        return {name: engine.chat(chats, chosen, use_tqdm=False) for name, chosen in params.items()}

    return solve


def run(
    device: torch.device,
    names: Sequence[str],
    solve: Callable[[Engine], Solved],
    *,
    few_bits: bool = False,
) -> bool:
    """Prints the result after every executor; returns whether all agree."""
    result: dict[str, Any] = {"bench": "gpu.executors", "executors": {}, "equal": None}
    family = open_family(few_bits)
    with open_engine(device, names[0], family) as engine:
        formats = engine.memory.formats
        result["weights"] = {role.name.lower(): list(formats[role]) for role in formats}
        solved = _tell(result, names[0], partial(solve, engine), None)
        for name in names[1:]:
            program = build_program(engine.parts.core.loop)
            executor = make_executor(name, program, device)
            with closing(executor), using(engine.parts.core, executor):
                _tell(result, name, partial(solve, engine), solved)
    equal = all(found["difference"] is None for found in result["executors"].values())
    result["equal"] = equal
    report.print_json(result)
    with open_engine(torch.device("cpu"), "eager", family) as engine:
        other = first_difference(solve(engine), solved, rewards=False)
    print(f"{names[0]} beside the CPU: {other or 'the same tokens'}")
    report.print_json(result | {"beside_the_cpu": other and vars(other)})
    return equal


def _tell(
    result: dict[str, Any], name: str, solve: Callable[[], Solved], expected: Solved | None
) -> Solved:
    """Runs one executor, and prints how it differs from the expected result."""
    print(f"{name} begins", flush=True)
    solved = solve()
    difference = first_difference(expected, solved) if expected is not None else None
    outputs = [output.outputs[0] for outputs in solved.values() for output in outputs]
    result["executors"][name] = {
        "difference": difference and vars(difference),
        "steps": sum(len(output.steps) for output in outputs),
        "rejected": sum(step.rejected is not None for output in outputs for step in output.steps),
        "tokens": sum(len(output.token_ids) for output in outputs),
    }
    print(f"{name}: {difference or result['executors'][name]}")
    report.print_json(result)
    return solved


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("gpu.executors", __doc__)
    parser.add_argument("--dry-run", action="store_true", help="fewer problems, on a CPU")
    parser.add_argument("--few-bits", action="store_true", help="with layers in few bits")
    given = parser.parse_args(arguments)
    few_bits = given.few_bits
    if given.dry_run:
        return 0 if run(torch.device("cpu"), _ON_CPU, solver(1, 48), few_bits=few_bits) else 1
    if not torch.cuda.is_available():
        parser.error(NO_GPU)
    return 0 if run(default_device(), _ON_GPU, solver(SLOTS, 200), few_bits=few_bits) else 1


if __name__ == "__main__":
    raise SystemExit(main())
