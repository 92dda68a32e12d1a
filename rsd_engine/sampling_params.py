"""What a request may ask for, with the names and meanings of vLLM where it has them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from rsd_engine.arguments import check_flag, check_integer, check_number
from rsd_engine.steps.policies import Policy, check_policy
from rsd_kernels.state.enums import MAX_LOGPROBS, MAX_STOP_TOKENS

ModeName = Literal["rsd", "target", "draft"]
MAX_SEED = 2**63 - 1
_FLAGS = ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens")


@dataclass(frozen=True)
class SamplingParams:
    """How one request is sampled, when it ends, and which steps are kept.

    Args:
        n: samples of the prompt; the random numbers of sample i depend on (seed, i) alone.
        temperature: >= 0; 0 is greedy.
        top_p: sample from the most likely tokens that reach this probability, in (0, 1].
        top_k: sample from this many most likely tokens; 0 or -1 takes all.
        min_p: drop tokens less likely than this share of the most likely one, in [0, 1].
        repetition_penalty: > 0; above 1 makes tokens of prompt and output less likely.
        seed: in [0, 2^63 - 1]; None draws one and reports it in the result.
        max_tokens: most tokens of the output; the context of a model may end it earlier.
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
        policy: from the reward of a step to the chance to keep it; None takes the engine's.
        mode: "rsd", or "target" or "draft" alone; None takes what the engine's models allow.

    Raises:
        ValueError: an argument is not allowed; the message names it, its value and what is allowed.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int = 2048
    min_tokens: int = 0
    max_step_tokens: int | None = None
    max_steps: int = 100
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    policy: Policy | None = None
    mode: ModeName | None = None

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_stops()
        for name in _FLAGS:
            check_flag(name, getattr(self, name))
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens must be at most max_tokens={self.max_tokens}, got {self.min_tokens}"
            )
        if self.mode not in (None, "rsd", "target", "draft"):
            raise ValueError(f"mode must be 'rsd', 'target' or 'draft', got {self.mode!r}")
        if self.policy is not None:
            check_policy(self.policy)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SamplingParams:
        """Builds params from JSON-like values; ValueError if a key or value is not allowed."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown sampling parameters {unknown}; allowed: {sorted(known)}")
        return cls(**values)

    def _check_numbers(self) -> None:
        check_integer("n", self.n, 1)
        check_number("temperature", self.temperature, 0.0, math.inf, ">= 0 and finite")
        check_number("top_p", self.top_p, 0.0, 1.0, "in (0, 1]", open_low=True)
        check_integer("top_k", self.top_k, -1)
        check_number("min_p", self.min_p, 0.0, 1.0, "in [0, 1]")
        check_number(
            "repetition_penalty",
            self.repetition_penalty,
            0.0,
            math.inf,
            "> 0 and finite",
            open_low=True,
        )
        if self.seed is not None:
            check_integer("seed", self.seed, 0, MAX_SEED)
        check_integer("max_tokens", self.max_tokens, 1)
        check_integer("min_tokens", self.min_tokens, 0)
        if self.max_step_tokens is not None:
            check_integer("max_step_tokens", self.max_step_tokens, 1)
        check_integer("max_steps", self.max_steps, 1)
        if self.logprobs is not None:
            check_integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)

    def _check_stops(self) -> None:
        if not isinstance(self.stop, str | Collection | None):
            raise ValueError(f"stop must be a string or a list of strings, got {self.stop!r}")
        for string in self.stop_strings:
            if not isinstance(string, str) or not string:
                raise ValueError(f"stop must hold non-empty strings, got {string!r}")
        if not isinstance(self.stop_token_ids, Collection | None):
            raise ValueError(f"stop_token_ids must be a list of ids, got {self.stop_token_ids!r}")
        for token in self.stop_token_ids or ():
            check_integer("stop_token_ids", token, 0)
        count = len(self.stop_token_ids or ())
        if count > MAX_STOP_TOKENS:
            raise ValueError(f"stop_token_ids may hold at most {MAX_STOP_TOKENS} ids, got {count}")
