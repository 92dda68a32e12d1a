"""What requests of an engine must obey, and what an engine makes of their wishes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_

from rsd_engine.engine.prompts import ResolvedPrompt
from rsd_engine.models.reward.family import PrmFormat
from rsd_engine.sampling_params import SamplingParams
from rsd_engine.steps.automaton import ByteAutomaton
from rsd_engine.steps.policies import Policy
from rsd_engine.steps.selection import Best, Selection, slots_of
from rsd_engine.steps.vocabulary import Vocabulary
from rsd_kernels.state.enums import Role, Speculation


@dataclass(frozen=True)
class WriterTokens:
    """The tokens of a writer."""

    vocabulary: Vocabulary
    num_ids: int  # that may be sampled
    eos_ids: frozenset[int]
    encode: Callable[[str], Sequence[int]]  # the ids of a text, without special ones around it

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """By the token's text."""
        return {text: i for i, text in self.vocabulary.special_text.items()}


@dataclass(frozen=True)
class RequestRules:
    """What every request of an engine must obey."""

    modes: tuple[str, ...]  # allowed; the first is the default
    policy: Policy
    delimiters: ByteAutomaton
    writers: Mapping[Role, WriterTokens]  # writers that share a vocabulary have the same ones
    max_model_len: int
    prm_max_len: int
    prm_format: PrmFormat | None
    max_num_seqs: int
    max_guesses: int = 0  # that a pass verifies
    remote: Collection[Role] = ()  # roles that servers play
    # of a target on a server: raises ValueError if a request wants what it cannot do
    check_remote: Callable[[SamplingParams], None] | None = None

    @property
    def main(self) -> Role:
        """The writer whose prompts and tokens a request of mode rsd has, unless they differ."""
        return Role.TARGET if Role.TARGET in self.writers else Role.DRAFT

    @property
    def separate(self) -> bool:
        """Whether draft and target have vocabularies of their own."""
        tokens = list(self.writers.values())
        return any(other is not tokens[0] for other in tokens)


def mode_of(params: SamplingParams, rules: RequestRules) -> str:
    """The mode of a request.

    Raises:
        ValueError: it needs models that are not loaded.
    """
    mode = params.mode or rules.modes[0]
    if mode not in rules.modes:
        raise ValueError(
            f"mode={mode!r} needs models that were not loaded; allowed here: {list(rules.modes)}"
        )
    return mode


def speculation_of(params: SamplingParams, mode: str, rules: RequestRules) -> Speculation:
    """Where the guesses of a request come from.

    Raises:
        ValueError: its mode, or the engine, has no place for them.
    """
    asked = params.speculate
    if asked is None:
        return Speculation.NONE
    found = reduce(or_, (Speculation[name.upper()] for name in asked.split("+")))
    problem = None
    if mode == "draft":
        problem = "the target writes nothing in mode 'draft'; leave it out"
    elif rules.separate:
        problem = "draft and target have different tokenizers here; leave it out"
    elif rules.check_remote is not None:
        problem = "the target is on a server, which has guesses of its own or none; leave it out"
    elif not rules.max_guesses:
        problem = "this engine was made without room for guesses; make it with max_guesses=32"
    elif found & Speculation.DRAFT and Role.DRAFT not in rules.writers:
        problem = "no draft was loaded; use 'ngram' or leave it out"
    elif found & Speculation.REJECTED and mode != "rsd":
        problem = f"nothing is rejected in mode {mode!r}; use 'draft' or 'ngram'"
    if problem:
        raise ValueError(f"speculate is {asked!r}, and {problem}")
    return found


def selection_of(params: SamplingParams, mode: str, rules: RequestRules) -> Selection | None:
    """How a candidate of each step is taken; None where a step has one draft.

    Raises:
        ValueError: its mode, or the engine, has no place for several.
    """
    asked = params.select
    if params.step_candidates == 1 and asked is None:
        return None
    num_slots = slots_of(params.step_candidates, asked)
    problem = None
    if mode != "rsd":
        problem = f"nothing scores steps in mode {mode!r}; leave them out, or use mode 'rsd'"
    elif rules.separate:
        problem = "draft and target have different tokenizers here; leave them out"
    elif rules.remote:
        names = " and ".join(role.name.lower() for role in sorted(rules.remote))
        problem = f"for that the {names} must be here, not on a server; leave them out"
    elif num_slots > rules.max_num_seqs:
        problem = (
            f"that takes {num_slots} slots at once, of max_num_seqs={rules.max_num_seqs}; lower "
            "them or raise max_num_seqs"
        )
    if problem:
        raise ValueError(
            f"step_candidates is {params.step_candidates}, select is {asked}, and {problem}"
        )
    return asked or Best()


def check_clear(prompt: ResolvedPrompt, params: SamplingParams) -> None:
    """For mode rsd with two vocabularies.

    Raises:
        ValueError: the request has token ids: it would not be clear whose they are.
    """
    ids = {
        "prompt_token_ids": prompt.is_ids,
        "stop_token_ids": params.stop_token_ids,
        "logit_bias": params.logit_bias,
        "allowed_token_ids": params.allowed_token_ids is not None,
    }
    instead = {
        "prompt_token_ids": "give the prompt as text or messages",
        "stop_token_ids": "give the tokens as stop strings",
    }
    for name, given in ids.items():
        if given:
            advice = instead.get(name, "leave it out")
            raise ValueError(
                f"{name} cannot be used in mode 'rsd' here, for draft and target have different "
                f"tokenizers; {advice}, or use mode 'draft' or 'target'"
            )
