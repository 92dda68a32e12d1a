"""What a request may ask for; names and meanings are those of vLLM where it has them."""

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
    """Sampling, limits and policy of one request. Validated when made.

    Args:
        n: samples of the prompt; sample i is keyed by (seed, i).
        temperature: 0 is greedy.
        top_p: keep the most likely tokens up to this probability, in (0, 1].
        top_k: keep this many tokens; 0 or -1 keeps all.
        min_p: drop tokens less likely than this share of the most likely one, in [0, 1].
        repetition_penalty: above 1 makes tokens of prompt and output less likely; > 0.
        seed: None draws one and reports it in the result.
        max_tokens: most tokens of the output; the context may end it earlier.
        min_tokens: no stop token or stop string ends the output before this many tokens.
        max_step_tokens: a step ends at this many tokens even without a delimiter; None = no limit.
        max_steps: most kept steps.
        stop: strings that end the output; cut from the text unless `include_stop_str_in_output`.
        stop_token_ids: ids that end the output, beside the model's end-of-text ids.
        ignore_eos: the model's end-of-text ids do not end the output.
        include_stop_str_in_output: leave the stop string in the text.
        skip_special_tokens: leave special tokens out of the text.
        logprobs: report this many best tokens at each position, beside the one taken.
        policy: reward -> acceptance; None takes the engine's.
        mode: "rsd", or "target" or "draft" alone; None takes what the engine's models allow.

    Raises:
        ValueError: an argument is out of range; the message names it, its value and the range.
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
        """Builds params from JSON-like values; unknown keys are errors."""
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
            raise ValueError(f"stop_token_ids may hold {MAX_STOP_TOKENS} ids, got {count}")
