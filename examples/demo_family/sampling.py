"""Generates in batches with the demo models, one step or up to the end of a solution.

It uses `generate` of transformers with left padding, not the engine, so the models and their
numbers do not depend on the code that they are meant to test.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from examples.demo_family.data import encode
from examples.demo_family.tokenizer import delimiter_id
from rsd_engine.demo.problems import DELIMITER

MAX_STEP_TOKENS = 40
MAX_SOLUTION_TOKENS = 256


@torch.inference_mode()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    step: bool = False,
    temperature: float = 0.0,
    batch: int = 128,
) -> list[list[int]]:
    """The tokens written after each prompt, including the stop token."""
    stops = [tokenizer.eos_token_id] + ([delimiter_id(tokenizer)] if step else [])
    ids = encode(tokenizer, prompts)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    written: list[list[int]] = [[] for _ in ids]
    for start in range(0, len(order), batch):
        group = order[start : start + batch]
        width = max(len(ids[i]) for i in group)
        rows = [[0] * (width - len(ids[i])) + ids[i] for i in group]
        mask = [[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in group]
        generate: Any = model.generate
        output = generate(
            input_ids=torch.tensor(rows, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            max_new_tokens=MAX_STEP_TOKENS if step else MAX_SOLUTION_TOKENS,
            do_sample=temperature > 0,
            temperature=temperature or None,
            top_k=0 if temperature > 0 else None,
            top_p=1.0 if temperature > 0 else None,
            eos_token_id=stops,
            pad_token_id=tokenizer.pad_token_id,
        )
        for i, row in zip(group, output[:, width:].tolist(), strict=True):
            written[i] = _until(row, set(stops))
    return written


def _until(row: list[int], stops: set[int]) -> list[int]:
    for index, token in enumerate(row):
        if token in stops:
            return row[: index + 1]
    return row


def written_text(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """The text of written tokens, without the eos."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def step_text(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """The text of a written step, without its delimiter or eos."""
    return written_text(tokenizer, ids).removesuffix(DELIMITER)
