"""How cost grows with the number of steps, slots, context and answer length, on small models.

    python -m bench.scaling --output scaling.svg

The demo family writes answers of exactly as many steps and tokens as asked for: every step is
accepted, the draft is a copy that cannot write end-of-text, no delimiter ends anything, and a step
ends at its length. What is written is of no interest here; how much is read for it is. The
baseline is the paper's arrangement on transformers (`bench.paper_arrangement`), whose reward model
reads question and answer from the start for every score.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from bench.compare.paper.arrangement import Limits, PaperArrangement
from bench.lib import report, timing
from rsd_engine import Constant, Engine, RequestOutput, SamplingParams
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import generate

STEPS = tuple(range(5, 61, 5))
SLOTS = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (64, 128, 256, 512, 768)
STEP_LENGTHS = (4, 8, 16, 32, 64, 128)
OURS, BASELINE = "ours", "paper's arrangement"
_NEVER = "\0"  # a delimiter that is not written
_CONTEXT = 1024  # of the demo family
_DEGREES = {"steps": 2}  # of the curve through the seconds of a series, if not a line


@dataclass(frozen=True)
class Work:
    """What is to be written."""

    questions: tuple[str, ...]
    num_steps: int
    step_tokens: int

    @property
    def num_tokens(self) -> int:
        return len(self.questions) * self.num_steps * self.step_tokens


@dataclass(frozen=True)
class Cost:
    """What writing it took, in one of the two ways."""

    prm_tokens: int  # rows the reward model read, a request
    seconds: timing.Timing


def endless_draft(folder: Path) -> Path:
    """Writes a copy of the demo draft that never ends into `folder`.

    Its embedding, which is its head too, has zeros for end-of-text: that logit is always 0, and
    the greatest of the others is above.
    """
    path = folder / "draft"
    shutil.copytree(checkpoint_dir("draft"), path)
    weights = load_file(path / "model.safetensors")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    weights["model.embed_tokens.weight"][config["eos_token_id"]] = 0
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


class Writers:
    """Both ways to write a `Work`.

    Args:
        draft: checkpoint of a draft that writes on without end.
    """

    def __init__(self, draft: Path) -> None:
        folders = draft, checkpoint_dir("target"), checkpoint_dir("prm")
        self._engine = Engine(
            *folders, policy=Constant(1.0), dtype="float32", device="cpu",
            max_num_seqs=max(SLOTS), step_delimiters=(_NEVER,),
        )  # fmt: skip
        self._arrangement = PaperArrangement(*folders, threshold=0.0)

    @property
    def tokenizer(self) -> Any:
        return self._engine.get_tokenizer()

    def ours(self, work: Work) -> list[RequestOutput]:
        """This engine.

        Raises:
            timing.Mismatch: an answer has other than the steps that were asked for.
        """
        params = SamplingParams(
            temperature=0.0, seed=0, ignore_eos=True, max_tokens=_CONTEXT,
            max_steps=work.num_steps, max_step_tokens=work.step_tokens,
        )  # fmt: skip
        chats = [[{"role": "user", "content": question}] for question in work.questions]
        results = self._engine.chat(chats, params, use_tqdm=False)
        for result in results:
            _check([len(step.token_ids) for step in result.outputs[0].steps], work)
        return results

    def baseline(self, work: Work) -> int:
        """The paper's arrangement; returns how many tokens its reward model read.

        Raises:
            timing.Mismatch: an answer has other than the steps that were asked for.
        """
        self._arrangement.limits = Limits(
            max_tokens=_CONTEXT, max_steps=work.num_steps, max_step_tokens=work.step_tokens,
            force_steps=True,
        )  # fmt: skip
        for answer in self._arrangement.solve(work.questions):
            _check([step.num_tokens for step in answer.steps], work)
        return self._arrangement.prm.tokens_read

    def costs(self, work: Work, runs: int) -> dict[str, Cost]:
        """Both in turn; the counts are of one request."""
        ways: dict[str, Callable[[], object]] = {
            OURS: lambda: self.ours(work), BASELINE: lambda: self.baseline(work),
        }  # fmt: skip
        read = {
            OURS: sum(result.metrics.prm.tokens_read for result in self.ours(work)),
            BASELINE: self.baseline(work),
        }
        taken = timing.alternate(ways, runs, warmup=0)  # counting has warmed both up
        count = len(work.questions)
        return {name: Cost(read[name] // count, taken[name]) for name in ways}


@dataclass(frozen=True)
class Fit:
    """y = constant + linear x + quadratic x^2, by least squares.

    Attributes:
        error: greatest distance of a point from the curve, in units of y.
    """

    constant: float
    linear: float
    quadratic: float
    error: float

    def __str__(self) -> str:
        bend = f" {self.quadratic:+.3g} x^2" if self.quadratic else ""
        return f"{self.constant:.3g} {self.linear:+.3g} x{bend} (at most {self.error:.2g} off)"


def fit(x: Sequence[int], y: Sequence[float], degree: int) -> Fit:
    """The curve of degree 1 or 2 through the points."""
    found = np.polynomial.Polynomial.fit(x, y, degree).convert()
    coefficients = [*found.coef, 0.0, 0.0][:3]
    error = float(np.abs(found(np.asarray(x)) - np.asarray(y)).max())
    return Fit(*(float(value) for value in coefficients), error)


def series(question: Callable[[int], str]) -> dict[str, dict[int, Work]]:
    """All works: what is varied -> its value -> the work.

    Args:
        question: a question of about as many tokens as the prompt shall have.
    """
    short = question(CONTEXTS[0])
    return {
        "steps": {k: Work((short,), k, 8) for k in STEPS},
        "slots": {n: Work((short,) * n, 4, 8) for n in SLOTS},
        "context": {n: Work((question(n),), 4, 8) for n in CONTEXTS},
        "answer length": {4 * n: Work((short,), 4, n) for n in STEP_LENGTHS},
    }


def question_of(tokenizer: Any, num_tokens: int) -> str:
    """Text of problems one after the other, cut to this many tokens."""
    text = " ".join(problem.question for problem in generate(0, "test", 16))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids[:num_tokens]))


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        writers = Writers(endless_draft(Path(folder)))
    works = series(lambda count: question_of(writers.tokenizer, count))
    result: dict[str, Any] = {"bench": "scaling", "runs": options.runs, "model": "demo family"}
    for name, points in works.items():
        costs = {value: writers.costs(work, options.runs) for value, work in points.items()}
        print(report.format_table(_headers(name), [_row(v, points[v], costs[v]) for v in costs]))
        result[name] = _figures(points, costs)
        slopes = slopes_of(result[name], _DEGREES.get(name, 1))
        print(
            f"ms by {name}: " + "; ".join(f"{who} {curve}" for who, curve in slopes.items()) + "\n"
        )
        result[name]["milliseconds"] = {who: vars(curve) for who, curve in slopes.items()}
    found = fits(result["steps"])
    print(_verdict(found))
    result["fits"] = {name: vars(curve) for name, curve in found.items()}
    if options.output:
        from bench.compare.scaling_plot import draw

        draw(result["steps"], options.output)
    report.print_json(result)


def slopes_of(figures: dict[str, Any], degree: int) -> dict[str, Fit]:
    """Milliseconds by what is varied: a curve through the medians of each."""
    return {
        name: fit(figures["values"], [1000 * s for s in seconds], degree)
        for name, seconds in figures["seconds"].items()
    }


def fits(steps: dict[str, Any]) -> dict[str, Fit]:
    """A line through ours, a parabola through the baseline's, and through ours to compare."""
    values, read = steps["values"], steps["prm_tokens"]
    return {
        "ours": fit(values, read[OURS], 1),
        "ours, quadratic": fit(values, read[OURS], 2),
        "baseline": fit(values, read[BASELINE], 2),
    }


def _verdict(found: dict[str, Fit]) -> str:
    line, bent, base = found["ours"], found["ours, quadratic"], found["baseline"]
    return (
        f"PRM tokens an answer of k steps: ours {line.constant:.1f} + {line.linear:.3f} k, at most "
        f"{line.error:.1f} tokens off the line (k^2 term of a parabola: {bent.quadratic:.5f}); "
        f"baseline {base.constant:.1f} + {base.linear:.3f} k + {base.quadratic:.3f} k^2, at most "
        f"{base.error:.1f} off"
    )


def _headers(name: str) -> tuple[str, ...]:
    return (name, "PRM tokens, ours", "baseline", "seconds, ours", "spread", "baseline", "spread",
            "ms a token, ours", "baseline", "ratio")  # fmt: skip


def _row(value: int, work: Work, costs: dict[str, Cost]) -> list[str]:
    mine, base = costs[OURS], costs[BASELINE]
    each = [1000 * cost.seconds.median / work.num_tokens for cost in (mine, base)]
    return [
        str(value), str(mine.prm_tokens), str(base.prm_tokens),
        f"{mine.seconds.median:.3f}", f"{mine.seconds.spread:.0%}",
        f"{base.seconds.median:.3f}", f"{base.seconds.spread:.0%}",
        f"{each[0]:.2f}", f"{each[1]:.2f}", f"{each[1] / each[0]:.2f}",
    ]  # fmt: skip


def _figures(points: dict[int, Work], costs: dict[int, dict[str, Cost]]) -> dict[str, Any]:
    names = (OURS, BASELINE)
    return {
        "values": list(points),
        "tokens": [work.num_tokens for work in points.values()],
        "prm_tokens": {name: [cost[name].prm_tokens for cost in costs.values()] for name in names},
        "seconds": {name: [cost[name].seconds.median for cost in costs.values()] for name in names},
        "spread": {name: [cost[name].seconds.spread for cost in costs.values()] for name in names},
    }


def _check(lengths: Sequence[int], work: Work) -> None:
    expected = [work.step_tokens] * work.num_steps
    if list(lengths) != expected:
        raise timing.Mismatch(
            f"steps of {list(lengths)} tokens in place of {work.num_steps} of {work.step_tokens}"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--output", type=Path, help="image of tokens read and seconds by steps; extra `bench`"
    )
    return parser


if __name__ == "__main__":
    main()
