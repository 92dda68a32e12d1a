"""Outputs of the engine in the shapes of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers.generation import GenerateDecoderOnlyOutput

from rsd_engine import RequestOutput


@dataclass
class RewardGuidedOutput(GenerateDecoderOnlyOutput):
    """What `return_dict_in_generate=True` gives.

    Attributes:
        sequences: [rows, tokens] int64: the prompt, the output, and padding.
        results: the result of each row: its steps with source and reward, and its metrics.
    """

    results: tuple[RequestOutput, ...] | None = None


def sequences(
    input_ids: Tensor, results: Sequence[RequestOutput], pad_token_id: int
) -> torch.LongTensor:
    """[rows, tokens] int64: each row of the prompt with its output, padded at the end.

    Raises:
        RuntimeError: a row failed.
    """
    written = []
    for row, result in enumerate(results):
        [output] = result.outputs
        if output.finish_reason == "error":
            raise RuntimeError(f"row {row} failed: {output.error}")
        written.append(output.token_ids)
    shape = len(written), max(map(len, written))
    new = torch.full(shape, pad_token_id, dtype=input_ids.dtype)
    for row, ids in enumerate(written):
        new[row, : len(ids)] = torch.tensor(ids)
    whole = torch.cat((input_ids, new.to(input_ids.device)), dim=1)
    return cast("torch.LongTensor", whole)
