"""What a request may ask for, with the names and meanings of vLLM where it has them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np

from rsd_engine.arguments import (
    MAX_INT32,
    check_flag,
    check_integer,
    check_number,
    check_text,
    shown,
)
from rsd_engine.steps.policies import Policy, check_policy, parse_policy
from rsd_engine.steps.selection import (
    GSI,
    MAX_CANDIDATES,
    Beam,
    Selection,
    check_selection,
    parse_selection,
)
from rsd_kernels.state.enums import (
    MAX_BAD_WORDS,
    MAX_BIASED_TOKENS,
    MAX_LOGPROBS,
    MAX_STOP_STATES,
    MAX_STOP_TOKENS,
)

ModeName = Literal["rsd", "target", "draft"]
OverflowName = Literal["stop", "target", "accept"]
SpeculateName = Literal["draft", "rejected", "rejected+draft", "ngram"]
MAX_SEED = 2**63 - 1
MAX_SAMPLES = 2**14
_MODES = (None, "rsd", "target", "draft")
_OVERFLOWS = ("stop", "target", "accept")
OWN_FIELDS = (  # what no other engine has: in a request to the server they are those of `rsd`
    "mode", "policy", "max_steps", "max_step_tokens", "prm_overflow", "speculate", "num_guesses",
    "step_candidates", "select",
)  # fmt: skip
TEXT_FORMS: Mapping[str, Callable[[str], Policy | Selection]] = {
    "policy": parse_policy,
    "select": parse_selection,
}
"""Fields that are text wherever a request is written down, and what reads them."""
_SPECULATIONS = (None, "draft", "rejected", "rejected+draft", "ngram")
MAX_GUESSES = 64
_MAX_STOP = MAX_STOP_STATES - 1  # strings, and bytes of one: each byte needs a state of its own
_MAX_BAD_WORD_BYTES = 4096
_MAX_DIGITS = 10  # of an id written as text
_INTEGERS: tuple[tuple[str, int, int], ...] = (  # name, least, most
    ("n", 1, MAX_SAMPLES),
    ("top_k", -1, MAX_INT32),
    ("seed", -1, MAX_SEED),
    ("max_tokens", 1, MAX_INT32),
    ("min_tokens", 0, MAX_INT32),
    ("max_step_tokens", 1, MAX_INT32),
    ("max_steps", 1, MAX_INT32),
    ("logprobs", 0, MAX_LOGPROBS),
    ("prompt_logprobs", 0, MAX_LOGPROBS),
    ("truncate_prompt_tokens", 1, MAX_INT32),
    ("num_guesses", 1, MAX_GUESSES),
    ("step_candidates", 1, MAX_CANDIDATES),
)
_MAY_BE_NONE = (
    "seed", "max_tokens", "max_step_tokens", "logprobs", "prompt_logprobs",
    "truncate_prompt_tokens", "num_guesses",
)  # fmt: skip
_NUMBERS = (  # name, least, most, the same in words, whether the least is not allowed
    ("top_p", 0.0, 1.0, "in (0, 1]", True),
    ("min_p", 0.0, 1.0, "in [0, 1]", False),
    ("repetition_penalty", 1e-6, 1e6, "in [1e-6, 1e6]", False),
    ("presence_penalty", -2.0, 2.0, "in [-2, 2]", False),
    ("frequency_penalty", -2.0, 2.0, "in [-2, 2]", False),
)


class Range(NamedTuple):
    """Which numbers are allowed."""

    least: float
    most: float
    open_low: bool = False  # whether the least itself is not


RANGES: Mapping[str, Range] = {  # of every field that is a number
    **{name: Range(least, most) for name, least, most in _INTEGERS},
    **{name: Range(least, most, open_low) for name, least, most, _, open_low in _NUMBERS},
    "temperature": Range(0.0, 1e6),
}
_FLAGS = ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens")


@dataclass(frozen=True)
class SamplingParams:
    """How one request is sampled, when it ends, and which steps are kept.

    Args:
        n: samples of the prompt, at most 16,384; the random numbers of sample i depend on
            (seed, i) alone.
        temperature: in [1e-6, 1e6], or 0, which is greedy.
        top_p: sample from the most likely tokens that reach this probability, in (0, 1].
        top_k: sample from this many most likely tokens; 0 or -1 takes all.
        min_p: drop tokens less likely than this share of the most likely one, in [0, 1].
        repetition_penalty: in [1e-6, 1e6]; above 1 makes tokens of prompt and output less likely.
        presence_penalty: in [-2, 2]; lowers the logit of every token that is in the output.
        frequency_penalty: in [-2, 2]; the same for every time that it is there. Neither looks at
            the prompt, or at steps that were not kept.
        logit_bias: token id -> what is added to its logit, in [-100, 100].
        allowed_token_ids: the only ids that may be sampled.
        bad_words: texts that are not written, with or without a space before them. As in vLLM they
            are looked for as tokens, so the same letters may come by way of other tokens.
        seed: in [0, 2^63 - 1]; None or -1 draws one and reports it in the result.
        max_tokens: most tokens of the output; None is as many as the contexts hold, which may end
            it earlier in any case.
        min_tokens: no stop token or stop string ends the output before this many tokens.
        max_step_tokens: ends a step at this many tokens, without a delimiter; None means no limit.
        max_steps: most kept steps.
        stop: string or strings that end the output; not in its text, unless
            `include_stop_str_in_output`.
        stop_token_ids: ids that end the output, besides the model's end-of-text ids.
        ignore_eos: whether to go on after the model's end-of-text ids.
        include_stop_str_in_output: whether to leave the stop string in the text.
        skip_special_tokens: whether to leave special tokens out of the text.
        logprobs: how many of the most likely tokens to report at each position, besides the one
            taken; None reports none.
        prompt_logprobs: the same for the tokens of the prompt, by the model that `mode` names, or
            the target.
        truncate_prompt_tokens: read only this many tokens of the prompt, the last ones; None reads
            all of them.
        policy: from the reward of a step to the chance to keep it; None takes the engine's.
        mode: "rsd", or "target" or "draft" alone; None takes what the engine's models allow.

        prm_overflow: what follows when the PRM's context is full, and no step can be scored any
            more. "stop" ends the output (with stop_reason "prm_context"), "target" lets the target
            write the rest, "accept" the draft.
        speculate: who guesses what the target will write, so that one of its passes can write
            several tokens (token-level speculation): "draft"; "ngram", which copies what followed
            the last tokens earlier in the context; in mode rsd, where the target only rewrites,
            also "rejected", the step that it replaces, or "rejected+draft". The output is the same,
            token for token; None does without. See `Engine`'s `max_guesses`.
        num_guesses: tokens that the draft, or "ngram", guesses at a time, at most 64; None lets the
            share of them that was right decide (8 for "ngram").
        step_candidates: drafts of each step that are written and scored side by side, at most 64;
            each takes a slot of the batch for as long as the request runs.
        select: which of them is taken: `Best()`, `Softmax(beta)`, `GSI(beta, threshold)` or
            `Beam(width)`; None is `Best()`. GSI decides in place of a policy.

    Where draft and target have different tokenizers, mode "rsd" takes no token ids (logit_bias,
    allowed_token_ids, stop_token_ids), and tokens are counted as their writers wrote them.

    numpy's numbers and arrays of ids are taken like Python's. Integers without a bound above end at
    2^31 - 1. Other numbers must be 0 or no smaller than 2^-126, the least that float32 holds in
    full.

    Raises:
        ValueError: an argument is not allowed; the message names it, its value and what is allowed.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    seed: int | None = None
    max_tokens: int | None = 2048
    min_tokens: int = 0
    max_step_tokens: int | None = None
    max_steps: int = 100
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    policy: Policy | None = None
    mode: ModeName | None = None
    prm_overflow: OverflowName = "stop"
    speculate: SpeculateName | None = None
    num_guesses: int | None = None
    step_candidates: int = 1
    select: Selection | None = None

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_stops()
        self._check_biases()
        for name in _FLAGS:
            self._set(name, check_flag(name, getattr(self, name)))
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens must be at most max_tokens={self.max_tokens}, got {self.min_tokens}"
            )
        if not isinstance(self.mode, str | None) or self.mode not in _MODES:
            raise ValueError(f"mode must be 'rsd', 'target' or 'draft', got {shown(self.mode)}")
        overflow = self.prm_overflow
        if not isinstance(overflow, str) or overflow not in _OVERFLOWS:
            raise ValueError(
                f"prm_overflow must be 'stop', 'target' or 'accept', got {shown(overflow)}"
            )
        if not isinstance(self.speculate, str | None) or self.speculate not in _SPECULATIONS:
            raise ValueError(
                "speculate must be None, 'draft', 'rejected', 'rejected+draft' or 'ngram', got "
                f"{shown(self.speculate)}"
            )
        if self.num_guesses is not None and self.speculate in (None, "rejected"):
            raise ValueError(
                f"num_guesses is {self.num_guesses}, and speculate is {self.speculate!r}; leave it "
                "out, or let speculate be 'draft', 'rejected+draft' or 'ngram'"
            )
        if self.policy is not None:
            check_policy(self.policy)
        if self.select is not None:
            check_selection(self.select)
            self._check_selection(self.select)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SamplingParams:
        """Builds params from JSON-like values; ValueError if a key or value is not allowed."""
        known = {f.name for f in fields(cls)}
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ValueError(
                f"unknown sampling parameters {shown(unknown)}; allowed: {sorted(known)}"
            )
        return cls(**values)

    def _set(self, name: str, value: object) -> None:
        """Stores a checked value: Python's own type in place of numpy's."""
        object.__setattr__(self, name, value)

    def _check_numbers(self) -> None:
        for name, low, high in _INTEGERS:
            value = getattr(self, name)
            if value is not None or name not in _MAY_BE_NONE:
                self._set(name, check_integer(name, value, low, high))
        for name, least, most, allowed, open_low in _NUMBERS:
            value = getattr(self, name)
            self._set(name, check_number(name, value, least, most, allowed, open_low=open_low))
        self._set("temperature", _temperature(self.temperature))
        if self.seed == -1:
            self._set("seed", None)

    def _check_selection(self, select: Selection) -> None:
        several_beams = isinstance(select, Beam) and select.width > 1
        if self.step_candidates == 1 and not several_beams:
            raise ValueError(
                f"select is {select}, and step_candidates is 1, so there is nothing to select; "
                "raise step_candidates or leave select out"
            )
        if self.policy is not None and isinstance(select, GSI):
            raise ValueError(
                f"policy is {self.policy}, and select is {select}, which has a threshold of its "
                "own; leave policy out"
            )

    def _check_stops(self) -> None:
        if not isinstance(self.stop, str | Collection | None):
            raise ValueError(f"stop must be a string or a list of strings, got {shown(self.stop)}")
        strings = self.stop_strings
        if len(strings) > _MAX_STOP:
            raise ValueError(f"stop may hold at most {_MAX_STOP} strings, got {len(strings)}")
        for string in strings:
            if not isinstance(string, str) or not string:
                raise ValueError(f"stop must hold non-empty strings, got {shown(string)}")
            _check_length("stop", string, _MAX_STOP)
        if self.stop_token_ids is not None:
            ids = _ids("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKENS)
            self._set("stop_token_ids", ids)

    def _check_biases(self) -> None:
        if self.logit_bias is not None:
            self._set("logit_bias", _biases(self.logit_bias))
        if self.allowed_token_ids is not None:
            ids = _ids("allowed_token_ids", self.allowed_token_ids, MAX_BIASED_TOKENS)
            if not ids:
                raise ValueError("allowed_token_ids is empty; it needs at least one id, or be None")
            self._set("allowed_token_ids", tuple(dict.fromkeys(ids)))
        self._check_bad_words()

    def _check_bad_words(self) -> None:
        words = self.bad_words
        if words is None:
            return
        if isinstance(words, str) or not isinstance(words, Collection):
            raise ValueError(f"bad_words must be a list of strings, got {shown(words)}")
        if len(words) > MAX_BAD_WORDS:
            raise ValueError(f"bad_words may hold at most {MAX_BAD_WORDS} words, got {len(words)}")
        for word in words:
            if not isinstance(word, str) or not word.strip():
                raise ValueError(
                    f"bad_words must hold strings that are not blank, got {shown(word)}"
                )
            _check_length("bad_words", word, _MAX_BAD_WORD_BYTES)


def _temperature(value: object) -> float:
    """0, or a number whose inverse leaves logits finite."""
    number = check_number("temperature", value, 0.0, 1e6, "0 or in [1e-6, 1e6]")
    if number:
        check_number("temperature", number, 1e-6, 1e6, "0 or in [1e-6, 1e6]")
    return number


def _check_length(name: str, text: str, most: int) -> None:
    """Raises ValueError unless UTF-8 can encode `text`, in at most `most` bytes."""
    check_text(f"a string of {name}", text)
    size = len(text.encode("utf-8"))
    if size > most:
        raise ValueError(
            f"{name} may hold strings of at most {most} bytes, got {shown(text)} of {size}"
        )


def _ids(name: str, ids: object, most: int) -> tuple[int, ...]:
    """Token ids as a tuple; ValueError unless they are at most `most` integers >= 0."""
    listed = ids.tolist() if isinstance(ids, np.ndarray) else ids
    if not isinstance(listed, Collection) or isinstance(listed, str | bytes | Mapping):
        raise ValueError(f"{name} must be a list of ids, got {shown(ids)}")
    if len(listed) > most:
        raise ValueError(f"{name} may hold at most {most} ids, got {len(listed)}")
    return tuple(check_integer(name, token, 0, MAX_INT32) for token in listed)


def _biases(given: object) -> dict[int, float]:
    """`logit_bias` with plain numbers; an id may be written as text, as JSON has it."""
    if not isinstance(given, Mapping):
        raise ValueError(f"logit_bias must map token ids to numbers, got {shown(given)}")
    if len(given) > MAX_BIASED_TOKENS:
        raise ValueError(f"logit_bias may hold at most {MAX_BIASED_TOKENS} ids, got {len(given)}")
    found = {}
    for token, bias in given.items():
        written = isinstance(token, str) and token.isdecimal() and len(token) <= _MAX_DIGITS
        number = int(token) if written else token
        number = check_integer("a token id of logit_bias", number, 0, MAX_INT32)
        name = f"logit_bias[{number}]"
        found[number] = check_number(name, bias, -100.0, 100.0, "in [-100, 100]")
    return found
