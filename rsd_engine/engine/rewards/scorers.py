"""Scorers without a model of their own, as heads on a writer's decoder that the loop can run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from rsd_engine.engine.chat.conversation import ChatOptions
from rsd_engine.engine.chat.renderer import TemplateRenderer
from rsd_engine.engine.memory_estimate import OwnContext
from rsd_engine.engine.models import ModelSet, OpenModel, PrmModel, difference_of_writers
from rsd_engine.models.heads import LanguageModel, RewardModel
from rsd_engine.models.probe import ProbeFile
from rsd_engine.models.reward.family import PrmFormat, RewardFamily
from rsd_engine.steps.scorers import Confidence, Probe, Scorer, TargetJudge, check_scorer
from rsd_engine.steps.vocabulary import plain_encoder
from rsd_kernels.reward.heads import ClassesHead, RewardHead
from rsd_kernels.state.enums import ConfidenceKind, Role

logger = logging.getLogger("rsd_engine")

_STEP = "HERE-ENDS-THE-STEP"  # stands for the answer so far where a chat template is rendered
_DIGITS = "0123456789"


@dataclass(frozen=True)
class OwnScorer:
    """A head on the decoder of a writer, which reads the writer's own tokens.

    Attributes:
        role: the writer.
        separator_ids: what it reads after each step, and forgets again.
        make_head: from the writer's model to the head.
    """

    role: Role
    separator_ids: tuple[int, ...]
    make_head: Callable[[LanguageModel], RewardHead]

    @property
    def context(self) -> OwnContext:
        return OwnContext(self.role, len(self.separator_ids))


def check_given(scorer: Scorer | None, given: Mapping[str, object | None]) -> None:
    """Raises ValueError unless the scorer goes with the models that are given, by role."""
    if scorer is None:
        return
    check_scorer(scorer)
    if given["prm"] is not None:
        raise ValueError("scorer and prm are both given; give one of them: it scores the steps")
    for name in ("draft", "target"):
        if given[name] is None:
            raise ValueError(
                f"scorer is given and no {name}; give draft and target, or leave the scorer out"
            )


def prepare_scorer(scorer: Scorer | None, opened: Mapping[Role, OpenModel]) -> OwnScorer | None:
    """What a scorer needs of the models, before weights are read.

    Returns:
        None without a scorer, and for one that needs no pass.

    Raises:
        ValueError: the scorer does not fit the models.
    """
    if scorer is None:
        return None
    difference = difference_of_writers(opened)
    if difference:
        raise ValueError(
            f"scorer needs a draft and a target of one tokenizer, and these differ ({difference}); "
            "give prm in its place, or models of one family"
        )
    if isinstance(scorer, Probe):
        role = Role[scorer.role.upper()]
        probe = ProbeFile(scorer.file, opened[role].config.hidden_size)
        return OwnScorer(role, (), probe.head)
    if isinstance(scorer, TargetJudge):
        return _judge(scorer, opened[Role.TARGET])
    return None


def add_scorer(models: ModelSet, scorer: Scorer | None, own: OwnScorer | None) -> ModelSet:
    """The models with what scores their steps."""
    if own is None:
        return replace(models, scorer=scorer)
    assert scorer is not None
    writer = models.writers[own.role]
    form = PrmFormat(
        before=(), prefix="", suffix="", after=(),
        separator_ids=own.separator_ids,
        encoder=plain_encoder(writer.tokenizer),
        num_transient=len(own.separator_ids),
        as_written=True,
    )  # fmt: skip
    head = own.make_head(writer.model)
    family = RewardFamily(
        name=scorer.title,
        architectures={},
        head=type(head),
        head_tensors={},
        head_dtype=None,
        format=lambda tokenizer: form,
        threshold=scorer.default_threshold,
    )
    model = RewardModel(writer.model.decoder, head)
    prm = PrmModel(model, family, form, writer.vocabulary, kv=own.role)
    return replace(models, prm=prm, scorer=scorer)


def confidence_kind(scorer: Scorer | None) -> ConfidenceKind:
    """What of the draft's distributions the loop sums up for a scorer."""
    if not isinstance(scorer, Confidence):
        return ConfidenceKind.NONE
    return ConfidenceKind[scorer.measure.upper()]


def say_scorer(models: ModelSet) -> None:
    """Tells what scores the steps, and what for."""
    scorer = models.scorer
    assert scorer is not None
    where = "no pass of its own"
    if models.prm is not None:
        form, name = models.prm.format, models.prm.kv.name.lower()
        where = f"on the {name}'s weights and K/V, {form.num_transient} ids after every step"
    logger.info("scorer: %s, %s; scores from 0 to 1", scorer.title, where)


def _judge(judge: TargetJudge, target: OpenModel) -> OwnScorer:
    text = _text_after_step(judge, target.tokenizer)
    separator, digits = _digit_ids(text, target.tokenizer, target.config.vocab_size)

    def make_head(model: LanguageModel) -> RewardHead:
        rows = model.lm_head.rows(torch.tensor(digits, device=model.device))
        weight = rows.to(model.dtype)  # it may be held in fewer bytes than it computes in
        return ClassesHead(
            norm_weight=model.decoder.weights.final_norm,
            eps=model.config.rms_norm_eps,
            weight=weight,
            bias=weight.new_zeros(len(digits)),
            values=torch.arange(len(digits), device=weight.device) / (len(digits) - 1),
            greedy=judge.greedy,
        )

    return OwnScorer(Role.TARGET, separator, make_head)


def _text_after_step(judge: TargetJudge, tokenizer: Any) -> str:
    """What follows a step: its message's end, the question, and how the answer begins."""
    if not getattr(tokenizer, "chat_template", None):
        return f"\n\n{judge.question}\n{judge.answer}"
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": _STEP},
        {"role": "user", "content": judge.question},
    ]
    renderer = TemplateRenderer()
    try:
        text = renderer.render(messages, ChatOptions().arguments(tokenizer))
    finally:
        renderer.close()
    _, found, after = text.rpartition(_STEP)
    if not found or judge.question not in after:
        raise ValueError(
            "TargetJudge: the target's chat template leaves out an earlier answer or the question "
            "after it, so the target cannot be asked about a step; give another target or scorer"
        )
    return after + judge.answer


def _digit_ids(
    text: str, tokenizer: Any, vocab_size: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids of `text`, and of each digit after it; a space before them may be part of either."""

    def encode(value: str) -> list[int]:
        return list(tokenizer.encode(value, add_special_tokens=False))

    for start, gap in ((text, ""), (text.rstrip(" "), " ")):
        before = encode(start)
        after = [encode(start + gap + digit) for digit in _DIGITS]
        single = [ids[-1] for ids in after if ids[:-1] == before and ids[-1] < vocab_size]
        if len(set(single)) == len(_DIGITS):
            return tuple(before), tuple(single)
    raise ValueError(
        f"TargetJudge: the digits 0 to 9 must be one token each after {text[-20:]!r} in the "
        "target's vocabulary, and are not; give another answer=, target or scorer"
    )
