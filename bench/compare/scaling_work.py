"""Answers of exactly as many steps and tokens as asked for, by this engine and by the baseline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from bench.compare.paper.arrangement import Limits, PaperArrangement
from bench.lib import timing
from rsd_engine import Constant, Engine, RequestOutput, SamplingParams
from rsd_engine.demo import checkpoint_dir

OURS, BASELINE = "ours", "paper's arrangement"
_NEVER = "\0"  # a delimiter that the models do not write
_CONTEXT = 1024  # of the demo family


@dataclass(frozen=True)
class Work:
    """Answers to write: each of `num_steps` steps of `step_tokens` tokens."""

    questions: tuple[str, ...]
    num_steps: int
    step_tokens: int

    @property
    def num_tokens(self) -> int:
        return len(self.questions) * self.num_steps * self.step_tokens


@dataclass(frozen=True)
class Cost:
    """What some work took.

    Attributes:
        prm_tokens: tokens that the reward model read, per request.
        seconds: for all of the work.
    """

    prm_tokens: int
    seconds: timing.Timing


def endless_draft(folder: Path) -> Path:
    """Writes into `folder` a copy of the demo draft that never ends a text.

    The embedding of end-of-text, which is also its row in the head, is zero. So its logit is always
    0, and the greatest of the others is above 0.
    """
    path = folder / "draft"
    shutil.copytree(checkpoint_dir("draft"), path)
    weights = load_file(path / "model.safetensors")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    weights["model.embed_tokens.weight"][config["eos_token_id"]] = 0
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


class Writers:
    """This engine and the baseline, which both can do any `Work`.

    Args:
        draft: checkpoint of a draft that never ends a text.
        max_slots: most questions at once.
    """

    def __init__(self, draft: Path, max_slots: int) -> None:
        folders = draft, checkpoint_dir("target"), checkpoint_dir("prm")
        self._engine = Engine(
            *folders, policy=Constant(1.0), dtype="float32", device="cpu",
            max_num_seqs=max_slots, step_delimiters=(_NEVER,), enable_prefix_caching=False,
        )  # fmt: skip
        self._arrangement = PaperArrangement(*folders, threshold=0.0)

    @property
    def tokenizer(self) -> Any:
        return self._engine.get_tokenizer()

    def ours(self, work: Work) -> list[RequestOutput]:
        """Does the work with this engine.

        Raises:
            timing.Mismatch: an answer does not have the steps that the work asks for.
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
        """Does the work with the paper's arrangement; returns how many tokens its PRM read.

        Raises:
            timing.Mismatch: an answer does not have the steps that the work asks for.
        """
        self._arrangement.limits = Limits(
            max_tokens=_CONTEXT, max_steps=work.num_steps, max_step_tokens=work.step_tokens,
            force_steps=True,
        )  # fmt: skip
        for answer in self._arrangement.solve(work.questions):
            _check([step.num_tokens for step in answer.steps], work)
        return self._arrangement.prm.tokens_read

    def costs(self, work: Work, runs: int) -> dict[str, Cost]:
        """The cost of the work, by contender; they alternate."""
        contenders: dict[str, Callable[[], object]] = {
            OURS: lambda: self.ours(work), BASELINE: lambda: self.baseline(work),
        }  # fmt: skip
        read = {
            OURS: sum(result.metrics.prm.tokens_read for result in self.ours(work)),
            BASELINE: self.baseline(work),
        }
        taken = timing.alternate(contenders, runs, warmup=0)  # counting was the warm-up
        count = len(work.questions)
        return {name: Cost(read[name] // count, taken[name]) for name in contenders}


def _check(lengths: Sequence[int], work: Work) -> None:
    expected = [work.step_tokens] * work.num_steps
    if list(lengths) != expected:
        raise timing.Mismatch(
            f"steps of {list(lengths)} tokens in place of {work.num_steps} of {work.step_tokens}"
        )
