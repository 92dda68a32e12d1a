"""Scorers that need no model of their own: what scores the draft's steps in place of a PRM.

A scorer is plain frozen data. Its score is a number from 0 to 1, the higher the better, and the
policy sees nothing else. To run, a scorer becomes a head on the draft's or target's decoder
(`rsd_engine.engine.rewards.scorers`), or what sampling sums up anyway (`Confidence`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rsd_engine.arguments import check_flag, check_text

__all__ = ["Confidence", "Probe", "Scorer", "TargetJudge"]


@dataclass(frozen=True)
class Scorer:
    """One of the scorers below.

    A subclass names its `default_threshold`, from which a step is kept where the user names no
    policy, and what the log calls it.
    """

    default_threshold: ClassVar[float]
    title: ClassVar[str]


@dataclass(frozen=True)
class TargetJudge(Scorer):
    """After each step of the draft the target is asked to rate it with a digit from 0 to 9.

    The target reads the step and the question on its own K and V, and its logits of the ten digits
    give the score; what it read of the question is then rolled back. Source: SpecReason (Pan et
    al., 2025), whose threshold is 7 of 9.

    Args:
        question: what the user's message asks; through the target's chat template, if it has one.
        answer: how the assistant's answer begins; the digit comes next.
        greedy: score the likeliest digit in place of the mean of all ten.

    Raises:
        ValueError: a text is empty.
    """

    default_threshold = 7 / 9
    title = "target as judge"
    question: str = (
        "How good is the last step of the solution so far? Look only at whether its facts are "
        "right and its reasoning holds. Answer with one digit, from 0 (wrong) to 9 (certainly "
        "right)."
    )
    answer: str = "Score: "
    greedy: bool = False

    def __post_init__(self) -> None:
        for name in ("question", "answer"):
            check_text(name, getattr(self, name))
            if not getattr(self, name).strip():
                raise ValueError(f"{name} of the judge is empty; give text, or leave it out")
        check_flag("greedy", self.greedy)


@dataclass(frozen=True)
class Confidence(Scorer):
    """The draft's own confidence in its step, by the distributions that it was drawn from.

    These are the model's own, before temperature, penalties and cut-offs. No pass is needed.

    Args:
        measure: "logprob" for exp of the mean log-probability of the step's tokens; "entropy" for
            1 - the mean entropy, as a share of that of a uniform distribution.

    Raises:
        ValueError: `measure` is neither.
    """

    default_threshold = 0.8
    title = "confidence of the draft"
    measure: str = "logprob"

    def __post_init__(self) -> None:
        if self.measure not in ("logprob", "entropy"):
            raise ValueError(
                f"measure of confidence must be 'logprob' or 'entropy', got {self.measure!r}"
            )


@dataclass(frozen=True)
class Probe(Scorer):
    """A small head on the hidden state of a writer's last token of each step, then a sigmoid.

    The file has the tensors `weight` [1, hidden] and `bias` [1] of a linear layer, or `0.weight`
    [units, hidden], `0.bias`, `2.weight` [1, units] and `2.bias` of two layers with ReLU between
    them, as `torch.nn.Sequential` names them. The last layer may have two rows, bad and good. The
    head reads the decoder's output after its final norm.

    Args:
        file: a safetensors file.
        role: the writer that it reads: "target" or "draft".

    Raises:
        ValueError: `role` is neither, or `file` is not a path.
    """

    default_threshold = 0.5
    title = "probe"
    file: str | Path
    role: str = "target"

    def __post_init__(self) -> None:
        if not isinstance(self.file, str | Path) or not str(self.file).strip():
            raise ValueError(f"file of a probe must be the path of one, got {self.file!r}")
        if self.role not in ("target", "draft"):
            raise ValueError(f"role of a probe must be 'target' or 'draft', got {self.role!r}")


SCORER_FORMS = "judge, judge:greedy, confidence[:logprob|:entropy], probe:FILE, draft-probe:FILE"
"""How each scorer is written on a command line."""


def check_scorer(value: object) -> None:
    """Raises ValueError unless `value` is a scorer, not its class or a name."""
    if type(value) not in Scorer.__subclasses__():
        raise ValueError(
            f"scorer must be one of rsd_engine's scorers, such as TargetJudge(), got {value!r}"
        )


def parse_scorer(text: str) -> Scorer:
    """The scorer written as in `SCORER_FORMS`.

    Raises:
        ValueError: it is none of them.
    """
    name, _, rest = text.strip().partition(":")
    if name == "judge" and rest in ("", "greedy"):
        return TargetJudge(greedy=rest == "greedy")
    if name == "confidence":
        return Confidence(rest or "logprob")
    if name in ("probe", "draft-probe") and rest:
        return Probe(rest, "draft" if name == "draft-probe" else "target")
    raise ValueError(f"scorer = {text!r}: unknown; write one of {SCORER_FORMS}")
