"""Replaces a model's forward by a script: the text is given, everything else is the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from rsd_engine import Engine
from rsd_engine.steps.vocabulary import byte_letters
from rsd_kernels.state.enums import Role
from rsd_kernels.state.rows import RowBatch


@contextmanager
def replaced(engine: Engine, role: Role, forward: Callable[[RowBatch], None]) -> Iterator[None]:
    """Runs `forward` instead of a model's; what it has left in the pages is not found later."""
    core = engine.parts.core
    forwards = core.loop.forwards
    before = forwards[role]
    forwards[role] = forward
    try:
        yield
    finally:
        forwards[role] = before
        core.prefixes.reset()


@contextmanager
def scripted(
    engine: Engine, *texts: str | list[int], role: Role = Role.DRAFT, split_characters: bool = False
) -> Iterator[None]:
    """`role` writes a text (or ids) after any prompt; the i-th for sample i."""
    tokenizer = engine.parts.models.writers[role].tokenizer
    scripts = [_ids(tokenizer, text, split_characters) for text in texts]
    state = engine.parts.core.state

    out = engine.parts.core.loop.logits[role]

    def forward(batch: RowBatch) -> None:
        for s, slot in enumerate(batch.seq_slot.tolist()):
            written = int(state.length[slot] - state.prompt_length[slot])
            script = scripts[int(state.sample_index[slot])]
            out[s] = 0.0
            out[s, script[min(written, len(script) - 1)]] = 30.0

    with replaced(engine, role, forward):
        yield


def _ids(tokenizer: object, text: str | list[int], split_characters: bool) -> list[int]:
    if isinstance(text, list):
        return text
    body = text.removesuffix("</s>")
    if split_characters:
        ids = [tokenizer.convert_tokens_to_ids(c) for c in byte_letters(body.encode())]  # type: ignore[attr-defined]
    else:
        ids = tokenizer.encode(body, add_special_tokens=False)  # type: ignore[attr-defined]
    return ids + [tokenizer.eos_token_id] * text.endswith("</s>")  # type: ignore[attr-defined]


@contextmanager
def spoiled(engine: Engine, role: Role, value: float, prompt_length: int) -> Iterator[None]:
    """Sets one logit (or one hidden value) to `value` in requests with this many prompt tokens."""
    state, forward = engine.parts.core.state, engine.parts.core.loop.forwards[role]

    def spoil(batch: RowBatch) -> None:
        forward(batch)
        for s, slot in enumerate(batch.seq_slot.tolist()):
            if int(state.prompt_length[slot]) == prompt_length:
                _result(engine, role, batch, s)[0] = value

    with replaced(engine, role, spoil):
        yield


def _result(engine: Engine, role: Role, batch: RowBatch, seq: int) -> Tensor:
    """The forward's result for a sequence: logits, or the hidden row that is scored."""
    if role != Role.PRM:
        return engine.parts.core.loop.logits[role][seq]
    prm = engine.parts.models.prm
    assert prm is not None
    return prm.model.decoder.activations.hidden[int(batch.seq_start[seq + 1]) - 1]
