"""Heads that are stored in another form than they are computed in, made from it at load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rsd_engine.models.checkpoints.base import StoredTensor
from rsd_engine.models.reward.family import Tensors, one_token

LM_HEAD = {"lm_head.weight": "weight", "lm_head.bias": "bias"}
"""Where two rows of the LM head go in a `ValueHead`; see `two_words`."""
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def two_classes(stored: Tensors, tokenizer: Callable[[], Any]) -> Tensors:
    """A linear layer `score` of two classes, bad and good, as the row of a value head.

    softmax(z)[1] is sigmoid(z1 - z0); the difference is taken in float32.

    Raises:
        ValueError: the layer has more or fewer classes.
    """
    del tokenizer
    changed = dict(stored)
    for name in {"score.weight", "score.bias"} & stored.keys():
        whole = stored[name]
        if whole.shape[:1] != (2,):
            raise ValueError(
                f"tensor {name} in {whole.file} has shape {list(whole.shape)}; it must have 2 "
                "rows, for bad and good steps: give a PRM of two labels"
            )
        changed[name] = _difference(whole, good=1, bad=0)
    return changed


def two_words(good: str, bad: str) -> Callable[[Tensors, Callable[[], Any]], Tensors]:
    """Two rows of the LM head, those of the tokens `good` and `bad`, as the row of a value head.

    The softmax over their logits alone is the sigmoid of their difference, which is taken in
    float32. Raises ValueError if one is no token or the LM head lacks its row.
    """

    def prepare(stored: Tensors, tokenizer: Callable[[], Any]) -> Tensors:
        whole = stored.get(_HEAD, stored.get(_EMBEDDING))
        if whole is None:
            return stored
        known = tokenizer()
        rows = {"good": one_token(known, good), "bad": one_token(known, bad)}
        if max(rows.values()) >= whole.shape[0]:
            raise ValueError(
                f"the LM head in {whole.file} has {whole.shape[0]} rows, and the tokens {good!r} "
                f"and {bad!r} are {rows['good']} and {rows['bad']}: give model and tokenizer that "
                "belong together"
            )
        bias = replace(
            whole, shape=(1,), dtype=torch.float32, nbytes=0, read=_no_bias, packing=None
        )
        return {**stored, _HEAD: _difference(whole, **rows), "lm_head.bias": bias}

    return prepare


def one_output(stored: Tensors, tokenizer: Callable[[], Any]) -> Tensors:
    """A two-layer head `score` of one output as one of two classes, of which the first is 0.

    Raises:
        ValueError: it has more outputs.
    """
    del tokenizer
    changed = dict(stored)
    for name in {"score.2.weight", "score.2.bias"} & stored.keys():
        whole = stored[name]
        if whole.shape[:1] != (1,):
            raise ValueError(
                f"tensor {name} in {whole.file} has shape {list(whole.shape)}; it must have 1 row: "
                "give a PRM with one output"
            )
        read, shape = partial(_after_zero, whole.read), (2, *whole.shape[1:])
        changed[name] = replace(whole, shape=shape, read=read, packing=None)
    return changed


def _difference(whole: StoredTensor, *, good: int, bad: int) -> StoredTensor:
    def read() -> Tensor:
        of_good, of_bad = _rows(whole, good, bad)
        return (of_good.float() - of_bad.float())[None]

    # A row of its own: 1 of a bias.
    shape = (1, *whole.shape[1:])
    size = 4 * (whole.shape[1] if len(shape) > 1 else 1)
    return replace(whole, shape=shape, dtype=torch.float32, nbytes=size, read=read, packing=None)


def _rows(whole: StoredTensor, *numbers: int) -> Tensor:
    """Some rows; of a matrix in blocks only these are expanded."""
    if whole.stored is None:
        return whole.read()[list(numbers)]
    return whole.stored().select(torch.tensor(numbers)).expand()


def _no_bias() -> Tensor:
    return torch.zeros(1)


def _after_zero(read: Callable[[], Tensor]) -> Tensor:
    row = read()
    return torch.cat([torch.zeros_like(row), row])
