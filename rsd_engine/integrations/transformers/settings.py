"""What `generate` of transformers was asked for, as `SamplingParams`.

Its lists of logits processors and stopping criteria are read, not its config: they hold what the
config asks for and what the caller added, and nothing that is in them is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import logits_process as processors
from transformers.generation import stopping_criteria as criteria
from transformers.generation.configuration_utils import GenerationMode

from rsd_engine import SamplingParams


@dataclass(frozen=True)
class PromptShape:
    """Tokens of a row, padding included, and how many of each row are padding."""

    length: int
    padding: Sequence[int]


_Reader = Callable[[Any, PromptShape], dict[str, Any]]

_PROCESSORS: Mapping[type, _Reader] = {
    processors.TemperatureLogitsWarper: lambda found, _: {"temperature": float(found.temperature)},
    processors.TopKLogitsWarper: lambda found, _: {"top_k": found.top_k},
    processors.TopPLogitsWarper: lambda found, _: {"top_p": float(found.top_p)},
    processors.MinPLogitsWarper: lambda found, _: {"min_p": float(found.min_p)},
    processors.RepetitionPenaltyLogitsProcessor: lambda found, prompt: _penalty(found, prompt),
    processors.MinLengthLogitsProcessor: lambda found, prompt: {
        "min_tokens": max(0, found.min_length - prompt.length)
    },
    processors.MinNewTokensLengthLogitsProcessor: lambda found, _: {
        "min_tokens": found.min_new_tokens
    },
    processors.LogitNormalization: lambda found, _: {},
}
_CRITERIA: Mapping[type, _Reader] = {
    criteria.MaxLengthCriteria: lambda found, prompt: {
        "max_tokens": found.max_length - prompt.length
    },
    criteria.EosTokenCriteria: lambda found, _: {"stop_token_ids": found.eos_token_id.tolist()},
    criteria.StopStringCriteria: lambda found, _: {"stop": list(found.stop_strings)},
}
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)


def read_settings(
    config: GenerationConfig,
    logits_processor: Iterable[Any],
    stopping_criteria: Iterable[Any],
    prompt: PromptShape,
) -> SamplingParams:
    """The parameters of every row.

    Args:
        config: as `generate` has prepared it.
        logits_processor: what changes the logits, from the config and from the caller.
        stopping_criteria: what ends an output, likewise.
        prompt: of all rows.

    Raises:
        ValueError: something is asked for that the engine cannot do; nothing was started.
    """
    mode = config.get_generation_mode()
    if mode not in _MODES:
        raise ValueError(
            f"the generation config asks for {mode.value}; only greedy search and sampling are "
            "there with RSD: set num_beams=1, and leave out what asks for another mode"
        )
    for name in _OUTPUTS:
        if getattr(config, name, None):
            raise ValueError(f"{name}=True is not supported with RSD; leave it out")
    fields: dict[str, Any] = {
        "temperature": 1.0 if config.do_sample else 0.0,
        "max_tokens": None,
        "ignore_eos": True,  # the criteria name the ids that end a text
    }
    for found in logits_processor:
        fields |= _read(_PROCESSORS, found, "logits processor", prompt)
    for found in stopping_criteria:
        fields |= _read(_CRITERIA, found, "stopping criterion", prompt)
    return SamplingParams(**fields)


def _read(
    readers: Mapping[type, _Reader], found: Any, kind: str, prompt: PromptShape
) -> dict[str, Any]:
    reader = readers.get(type(found))
    if reader is None:
        allowed = ", ".join(sorted(known.__name__ for known in readers))
        raise ValueError(
            f"the {kind} {type(found).__name__} cannot run inside the engine, which knows "
            f"{allowed}; leave it out, or the setting that asks for it"
        )
    return reader(found, prompt)


def _penalty(found: Any, prompt: PromptShape) -> dict[str, Any]:
    """transformers leaves out the padding, which the engine never reads; no more is allowed."""
    ignored = found.prompt_ignore_length
    given = ignored.tolist() if isinstance(ignored, Tensor) else [ignored or 0]
    if any(given) and given != list(prompt.padding):
        raise ValueError(
            f"a repetition penalty with prompt_ignore_length={given} is not supported: the "
            "engine's counts the whole prompt; leave it out"
        )
    return {"repetition_penalty": float(found.penalty)}
