"""`generate` by RSD with every argument of transformers' own, streamers and stop strings too."""

from __future__ import annotations

from functools import partial
from inspect import Parameter, signature
from typing import Any

from torch import Tensor
from transformers.generation import StoppingCriteriaList, StopStringCriteria

from rsd_engine.integrations.transformers.decoding import reward_guided
from rsd_engine.integrations.transformers.results import RewardGuidedOutput

_OWN = tuple(
    name
    for name, parameter in signature(reward_guided).parameters.items()
    if parameter.kind is Parameter.KEYWORD_ONLY and name not in ("streamer", "tokenizer")
)


def generate(
    model: Any,
    inputs: Tensor | None = None,
    *,
    streamer: Any = None,
    tokenizer: Any = None,
    assistant_model: Any = None,
    stop_strings: str | list[str] | None = None,
    stopping_criteria: list[Any] | None = None,
    **arguments: Any,
) -> Tensor | RewardGuidedOutput:
    """`model.generate`, with the decoding of `reward_guided` and its arguments besides.

    >>> generate(model, **inputs, draft_model=draft, prm=prm, max_new_tokens=256)

    Args:
        model: the target.
        inputs: [rows, tokens] int64, or `input_ids` among the arguments.
        streamer: see `reward_guided`.
        tokenizer: of the target; None reads that of the checkpoint it was loaded from.
        assistant_model: is for token-level speculation; refused.
        stop_strings: they end an output, and need the tokenizer.
        stopping_criteria: see `reward_guided`.
        arguments: of `model.generate` and of `reward_guided`.

    Raises:
        ValueError, RuntimeError: see `reward_guided`.
    """
    if assistant_model is not None:
        raise ValueError(
            "assistant_model is for token-level speculation; give the small model as draft_model"
        )
    own = {name: arguments.pop(name) for name in _OWN if name in arguments}
    ends = list(stopping_criteria or ())
    if stop_strings is not None:
        if tokenizer is None:
            raise ValueError("stop_strings need the tokenizer; pass tokenizer=")
        ends.append(StopStringCriteria(tokenizer=tokenizer, stop_strings=stop_strings))
    # The class's: a model with a custom_generate folder of its own has another in its instance.
    return type(model).generate(
        model,
        inputs,
        stopping_criteria=StoppingCriteriaList(ends),
        custom_generate=partial(reward_guided, streamer=streamer, tokenizer=tokenizer, **own),
        **arguments,
    )
