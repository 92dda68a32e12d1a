"""ReasonFlux-PRM-7B (Zou et al., 2025): Qwen2.5-Math-PRM's head under another system text."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from rsd_engine.models.reward.family import PrmFormat, named
from rsd_engine.models.reward.qwen_math_prm import QWEN_MATH_PRM, chat_format

_QWEN2_5 = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
# As a chat template spells it: mostly `\n` for a newline, and two backslashes for one.
_DEFAULT_SYSTEM = re.compile(r"<\|im_start\|>system(?:\\n|\n)([^'\"]+?)<\|im_end\|>")


def _format(tokenizer: Any) -> PrmFormat:
    """The card's example has no system message, so the template's own counts."""
    template = getattr(tokenizer, "chat_template", None)
    found = _DEFAULT_SYSTEM.search(template) if isinstance(template, str) else None
    system = found[1].replace("\\\\", "\\") if found else _QWEN2_5
    return chat_format(tokenizer, system=system, separator="<extra_0>")


REASONFLUX_PRM = replace(
    QWEN_MATH_PRM,
    name="ReasonFlux-PRM",
    format=_format,
    recognise=named("reasonflux-prm"),
    threshold=0.5,  # from there on the good class is the likelier of the two
)
