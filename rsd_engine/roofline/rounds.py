"""The least time of a token: with one model, with token-level speculation, and with RSD.

Every pass is as full as the slots allow, in all three: emptier passes would read the weights more
often, so no schedule can be quicker than these figures.
"""

from __future__ import annotations

from dataclasses import dataclass

from rsd_engine.roofline.gpus import Device
from rsd_engine.roofline.guesses import tokens_a_pass
from rsd_engine.roofline.passes import pass_cost
from rsd_engine.roofline.shape import ModelShape

MAX_DRAFT_TOKENS = 32  # the most draft tokens per cycle that `speculate` tries
_NEARLY_ONE = 1 - 1e-9


@dataclass(frozen=True)
class Setting:
    """The device and the load.

    Args:
        device: its rates.
        slots: sequences that run at once.
        context: tokens that each of them holds, on average.
        step_tokens: tokens per step.

    Raises:
        ValueError: a count is below 1.
    """

    device: Device
    slots: int = 1
    context: int = 1024
    step_tokens: int = 40

    def __post_init__(self) -> None:
        for name in ("slots", "context", "step_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def seconds(self, shape: ModelShape, rows: float = 1.0, places: float = 1.0) -> float:
        """The least time of a pass in which every slot has `rows` new tokens, `places` sampled."""
        cost = pass_cost(shape, seqs=self.slots, rows=rows, context=self.context, places=places)
        return cost.seconds(self.device)


@dataclass(frozen=True)
class Triple:
    """The three models."""

    draft: ModelShape
    target: ModelShape
    prm: ModelShape


@dataclass(frozen=True)
class RoundSeconds:
    """The parts of a round, which gives every slot one step; means over kept and rejected steps."""

    draft: float  # the draft reads the target's last step, if there was one, and writes the next
    score: float  # the PRM reads the step
    catch_up: float  # the target reads the steps kept since its last one
    rewrite: float  # the target writes the rejected steps

    @property
    def total(self) -> float:
        return self.draft + self.score + self.catch_up + self.rewrite


@dataclass(frozen=True)
class Speculation:
    """Token-level speculative decoding with the best number of draft tokens."""

    draft_tokens: int  # 0: speculation does not pay, the target writes alone
    tokens_per_second: float


def alone(shape: ModelShape, setting: Setting) -> float:
    """Tokens per second of one model that writes alone."""
    return setting.slots / setting.seconds(shape)


def round_seconds(triple: Triple, setting: Setting, acceptance: float) -> RoundSeconds:
    """The least time of a round of Algorithm 1 (Liao et al., ICML 2025).

    A model reads what others wrote in a pass that it needs anyway: the target reads kept steps
    when it next rewrites one, draft and PRM read a rewritten step together with the next one. The
    PRM's context has one more token per step, the separator.

    Args:
        triple: the models.
        setting: device, slots, context and step length.
        acceptance: share of the draft's steps that are kept.

    Raises:
        ValueError: `acceptance` is not in [0, 1].
    """
    check_share("acceptance", acceptance)
    tokens, rejected = setting.step_tokens, 1 - acceptance
    draft = setting.seconds(triple.draft, 1 + rejected * tokens)
    draft += (tokens - 1) * setting.seconds(triple.draft)
    score = setting.seconds(triple.prm, (1 + rejected) * (tokens + 1))
    decode = setting.seconds(triple.target)
    return RoundSeconds(
        draft=draft,
        score=score,
        catch_up=_first_rewrite_pass(triple.target, setting, acceptance) - rejected * decode,
        rewrite=rejected * tokens * decode,
    )


def _first_rewrite_pass(target: ModelShape, setting: Setting, acceptance: float) -> float:
    """Time per round of the pass that begins a rewrite, and reads the steps kept since the last."""
    rejected = 1 - acceptance
    if rejected == 0:
        return 0.0  # the target is never called
    return rejected * setting.seconds(target, 1 + kept_rows(setting, acceptance))


def kept_rows(setting: Setting, acceptance: float) -> float:
    """Tokens of kept steps that the target reads before a rewrite; nothing is read twice."""
    most = setting.context - 1
    rejected = 1 - acceptance
    return most if rejected == 0 else min(setting.step_tokens * acceptance / rejected, most)


def rsd(triple: Triple, setting: Setting, acceptance: float) -> float:
    """Tokens per second of reward-guided speculative decoding."""
    seconds = round_seconds(triple, setting, acceptance).total
    return setting.slots * setting.step_tokens / seconds


def speculate(
    draft: ModelShape, target: ModelShape, setting: Setting, token_acceptance: float
) -> Speculation:
    """Token-level speculative decoding with the best number of draft tokens.

    A cycle is k draft passes and one target pass over k + 1 tokens, and yields
    (1 - a^(k+1)) / (1 - a) tokens on average (Leviathan et al., ICML 2023, equation 1).

    Args:
        draft: the model that proposes.
        target: the model that checks.
        setting: slots and context.
        token_acceptance: a, the chance that a draft token is kept.

    Raises:
        ValueError: `token_acceptance` is not in [0, 1].
    """
    check_share("token_acceptance", token_acceptance)
    one = setting.seconds(draft)

    def rate(k: int) -> float:
        tokens = tokens_a_pass(k, token_acceptance)
        return setting.slots * tokens / (k * one + setting.seconds(target, k + 1, places=k + 1))

    best = max(range(MAX_DRAFT_TOKENS + 1), key=rate)
    return Speculation(best, rate(best))


def break_even(triple: Triple, setting: Setting, tokens_per_second: float) -> float | None:
    """The least acceptance at which RSD reaches `tokens_per_second`; None if it never does."""

    def reaches(acceptance: float) -> bool:
        return rsd(triple, setting, acceptance) >= tokens_per_second

    low, high = 0.0, _NEARLY_ONE
    if reaches(low):
        return low
    if not reaches(high):
        return None
    for _ in range(60):  # the rate never falls as more steps are kept
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def flops_ratio(triple: Triple, step_tokens: int, acceptance: float) -> dict[str, float]:
    """Operations per kept token of the target alone, divided by those of RSD.

    Returns:
        `generated` counts tokens written or scored, as the paper does; `all` counts every token
        that any model reads: rewrites, separators and catching up included, prompts not.
    """
    rejected = 1 - acceptance
    draft, target, prm = (m.num_parameters for m in (triple.draft, triple.target, triple.prm))
    generated = draft + prm + rejected * target
    separator = (step_tokens + 1) / step_tokens
    read = (1 + rejected) * (draft + separator * prm) + (target if rejected > 0 else 0)
    return {"generated": target / generated, "all": target / read}


def check_share(name: str, value: float) -> None:
    """Raises ValueError if the value is not in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")
