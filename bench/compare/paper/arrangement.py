"""RSD arranged as in the paper's code, on transformers: the baseline.

The authors run a script in front of three inference servers (draft, target, reward model). This is
the same arrangement in one process, without the network, written from its description:

- Lock-step. In every round the draft writes a step of every unfinished answer, then the reward
  model scores all of these, then the target rewrites all rejected ones. All wait for the slowest.
- Text between the models. A call takes the text of the prompt and the kept steps and tokenises it.
  It returns text, cut at the first delimiter.
- The reward model reads question and answer from the start for every score. The authors' server
  cannot avoid this: a pooling model that returns a score per token has none for cached tokens, so
  vLLM disables its prefix cache for such requests.

To be fair, the baseline caches what those servers cache. The servers of draft and target use prefix
caching. So with calls of kind "prefix cache", both keep the keys and values of each text from call
to call, even to the exact token where a server keeps whole blocks. With "read again", they read
every text from its start, which is faster where gathering cached keys and values costs more. Both
decode in a loop leaner than `generate`, without logits processors or a library that searches for
stop strings. "generate" is one call of `generate` per step, the usual way to write this with
transformers.

Two things are left out because they change results and not speed: answers are not cut off when no
other answer has finished for five rounds, and an output ends at `max_tokens`, as this engine's
does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from bench.compare.paper.loop_writer import LoopWriter
from bench.compare.paper.reward_model import EagerPrm
from bench.compare.paper.writers import Completion, EagerWriter, GenerateWriter, Loaded

DELIMITER = "\n\n"
CallKind = Literal["prefix cache", "read again", "generate"]
_NEVER = "\0"  # the models do not write this byte, so forced steps end only by length
CALL_KINDS: tuple[CallKind, ...] = get_args(CallKind)


@dataclass(frozen=True)
class KeptStep:
    """A step of an answer, without its delimiter, and what the draft wrote for it."""

    text: str
    source: Literal["draft", "target"]
    drafted: str
    reward: float  # of what the draft wrote
    num_tokens: int  # of the kept text, including its delimiter


@dataclass
class Answer:
    """One answer while it grows."""

    question: str
    prompt: str
    written: str = ""  # after the prompt, including delimiters
    steps: list[KeptStep] = field(default_factory=list)
    done: bool = False

    @property
    def text(self) -> str:
        return self.prompt + self.written

    @property
    def step_texts(self) -> list[str]:
        return [step.text for step in self.steps]

    def keep(self, step: KeptStep, made: Completion) -> None:
        self.steps.append(step)
        self.written += made.text + (DELIMITER if made.reason == "stop" else "")


@dataclass(frozen=True)
class Limits:
    """When steps and answers end.

    Attributes:
        max_tokens: most tokens of an answer.
        max_steps: most kept steps.
        max_step_tokens: most tokens of a step; None for no limit.
        force_steps: write exactly `max_steps` steps of `max_step_tokens` tokens, since neither
            end-of-text nor a delimiter ends anything. This is for measuring cost by length.
    """

    max_tokens: int = 256
    max_steps: int = 100
    max_step_tokens: int | None = None
    force_steps: bool = False


class PaperArrangement:
    """Draft, target and reward model in lock-step.

    Args:
        draft: checkpoint folder in Hugging Face format, or a model; must share its tokenizer with
            the target.
        target: likewise.
        prm: likewise, in the format of Skywork-o1-Open-PRM.
        threshold: a step is kept if its reward reaches it.
        limits: when steps and answers end.
        calls: how draft and target are called.
    """

    def __init__(
        self,
        draft: Path | Loaded,
        target: Path | Loaded,
        prm: Path | EagerPrm,
        *,
        threshold: float = 0.7,
        limits: Limits | None = None,
        calls: CallKind = "prefix cache",
    ) -> None:
        self.draft, self.target = _writer(draft, calls), _writer(target, calls)
        self.prm = EagerPrm(prm, DELIMITER) if isinstance(prm, Path) else prm
        self.threshold = threshold
        self.limits = limits or Limits()

    def solve(self, questions: Sequence[str]) -> list[Answer]:
        """Writes all answers together, starting with empty caches."""
        for part in (self.draft, self.target, self.prm):
            part.reset()
        answers = [Answer(question, self.prompt(question)) for question in questions]
        first = self.draft.encode([answer.prompt for answer in answers])
        ends = [len(ids) + self.limits.max_tokens for ids in first]
        while active := [i for i, answer in enumerate(answers) if not answer.done]:
            self._round(answers, active, ends)
        return answers

    def prompt(self, question: str) -> str:
        messages = [{"role": "user", "content": question}]
        return str(
            self.target.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        )

    def _round(self, answers: Sequence[Answer], active: Sequence[int], ends: Sequence[int]) -> None:
        """One more step of every active answer."""
        drafted = self._complete(self.draft, answers, active, ends)
        rewards = self.prm.score(
            [answers[i].question for i in active],
            [[*answers[i].step_texts, made.text] for i, made in zip(active, drafted, strict=True)],
        )
        made = dict(zip(active, drafted, strict=True))
        scored = dict(zip(active, rewards, strict=True))
        rejected = [i for i in active if scored[i] < self.threshold]
        if rejected:
            rewritten = self._complete(self.target, answers, rejected, ends)
            kept = made | dict(zip(rejected, rewritten, strict=True))
        else:
            kept = made
        for i in active:
            source: Literal["draft", "target"] = "target" if i in rejected else "draft"
            step = KeptStep(kept[i].text, source, made[i].text, scored[i], kept[i].num_tokens)
            answers[i].keep(step, kept[i])
        self._finish(answers, active, [kept[i] for i in active], ends)

    def _complete(
        self, writer: EagerWriter, answers: Sequence[Answer], which: Sequence[int],
        ends: Sequence[int],
    ) -> list[Completion]:  # fmt: skip
        texts = [answers[i].text for i in which]
        left = [ends[i] - len(ids) for i, ids in zip(which, writer.encode(texts), strict=True)]
        most = self.limits.max_step_tokens
        budgets = left if most is None else [min(most, n) for n in left]
        forced = self.limits.force_steps
        stop = _NEVER if forced else DELIMITER
        return writer.complete(which, texts, budgets, stop, ignore_eos=forced)

    def _finish(
        self, answers: Sequence[Answer], active: Sequence[int], kept: Sequence[Completion],
        ends: Sequence[int],
    ) -> None:  # fmt: skip
        """Marks the answers that ended; length is that of the text, as in the paper's code."""
        lengths = map(len, self.target.encode([answers[i].text for i in active]))
        for i, made, length in zip(active, kept, lengths, strict=True):
            answer = answers[i]
            ended = made.reason == "eos"
            answer.done = ended or length >= ends[i] or len(answer.steps) >= self.limits.max_steps


def _writer(source: Path | Loaded, calls: CallKind) -> EagerWriter:
    if calls == "generate":
        return GenerateWriter(source)
    return LoopWriter(source, prefix_cache=calls == "prefix cache")
