"""The prefix table, token by token, and the refusals of its builder."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from tokenizers import AddedToken, Tokenizer

from rsd_engine.steps.tables import build_step_tables
from rsd_engine.steps.vocabulary import read_vocabulary
from rsd_kernels.state.tables import BY_TEXT, NOT_READ, StepTables
from tests.steps.toy_tokenizers import (
    CHAT_TOKENS,
    id_of,
    llama_like,
    math_like,
    qwen_like,
    smollm_like,
)
from tests.text import replace_once

TOKENIZERS = {
    "qwen": qwen_like(),
    "math": math_like(),
    "smollm": smollm_like(),
    "llama": llama_like(),
}
DELIMITERS = [["\n\n"], ["\n\n", "$."], ["é"], [" a"], []]


def prefix(tables: StepTables, token: int, c: int) -> list[int] | None:
    """The tokens of the first `c` bytes of `token`; None if the table has no entry for it."""
    entry = int(tables.prefix_entry[token])
    if entry < 0:
        return None
    first, last = tables.prefix_start[entry + c - 1 : entry + c + 1].tolist()
    return tables.prefix_token[first:last].tolist()


def is_cut(data: bytes, c: int, delimiters: list[bytes]) -> bool:
    """A delimiter may end after c bytes of the token, or begin there and go on past the token."""
    after = any(data[:c].endswith(d) or d.endswith(data[:c]) for d in delimiters)
    before = any(d.startswith(data[c:]) for d in delimiters)
    return after or before


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("delimiters", DELIMITERS, ids=repr)
def test_every_cut_has_tokens_of_exactly_those_bytes(name: str, delimiters: list[str]) -> None:
    tokenizer = TOKENIZERS[name]
    vocabulary = read_vocabulary(tokenizer)
    tables = build_step_tables(vocabulary, vocabulary, delimiters, [3], "cpu")
    encoded = [d.encode() for d in delimiters]
    for token, data in enumerate(vocabulary.token_bytes):
        cuts = [c for c in range(1, len(data)) if is_cut(data, c, encoded)]
        if not cuts:
            assert prefix(tables, token, 1) is None
        for c in cuts:
            tokens = prefix(tables, token, c)
            assert tokens and vocabulary.join(tokens) == data[:c]


def test_prefixes_are_the_tokens_of_the_text() -> None:
    tokenizer = math_like()
    tables = build_step_tables(read_vocabulary(tokenizer), None, ["\n\n"], [], "cpu")

    def ids(*tokens: str) -> list[int]:
        return [id_of(tokenizer, token) for token in tokens]

    assert prefix(tables, id_of(tokenizer, ".ĊĊĊĊ"), 3) == ids(".ĊĊ")
    assert (
        prefix(tables, id_of(tokenizer, ".ĊĊĊĊ"), 1) == []
    )  # a blank line ends before this is asked
    assert prefix(tables, id_of(tokenizer, ".ĊĊ"), 1) == ids(".")
    assert prefix(tables, id_of(tokenizer, ".Ċ"), 1) == ids(".")
    assert prefix(tables, id_of(tokenizer, "ĊĊĊ"), 2) == ids("ĊĊ")
    assert prefix(tables, id_of(tokenizer, "$."), 1) is None


def test_prefixes_that_are_no_text_get_the_models_own_tokens() -> None:
    tokenizer = math_like()
    half = tokenizer.token_to_id("Ã") or 0
    made = replace_once(tokenizer.to_str(), '"vocab":{', '"vocab":{"ÃĊĊ":9999,')
    tokenizer = Tokenizer.from_str(replace_once(made, '"merges":[', '"merges":[["Ã","ĊĊ"],'))
    tables = build_step_tables(read_vocabulary(tokenizer), None, ["\n\n"], [], "cpu")
    assert prefix(tables, 9999, 1) == [half]


def test_bytes_and_prm_ids() -> None:
    tokenizer = qwen_like([*CHAT_TOKENS, "<|quad_end|>"])
    prm = qwen_like([*CHAT_TOKENS, "<extra_0>"])
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    vocabulary = read_vocabulary(tokenizer)
    tables = build_step_tables(vocabulary, read_vocabulary(prm), ["\n\n"], [5, 6], "cpu")
    start = tables.token_start.tolist()
    joined = bytes(tables.token_byte.tolist())
    assert tuple(joined[a:b] for a, b in pairwise(start)) == vocabulary.token_bytes
    ordinary = prm.get_vocab_size(with_added_tokens=False)
    # special tokens have no text to read; the PRM reads the letters of the one that it lacks
    special = [NOT_READ] * (len(CHAT_TOKENS) + 1)
    assert tables.prm_token.tolist() == [*range(ordinary), *special, BY_TEXT]
    assert tables.separator.tolist() == [5, 6]
    assert {t.dtype for t in (tables.token_start, tables.prefix_entry, tables.prm_token)} == {
        torch.int32
    }
    assert tables.token_byte.dtype == torch.uint8


def test_ids_around_a_step() -> None:
    vocabulary = read_vocabulary(qwen_like())
    made = build_step_tables(
        vocabulary, None, ["\n\n"], [5, 6], "cpu", before_step=[7], num_transient=2
    )
    assert (made.before_step.tolist(), made.num_transient) == ([7], 2)
    with pytest.raises(ValueError, match="num_transient is 3; it must be 0 to 2"):
        build_step_tables(vocabulary, None, ["\n\n"], [5, 6], "cpu", num_transient=3)


def test_without_a_prm_no_token_has_a_place() -> None:
    tables = build_step_tables(read_vocabulary(qwen_like()), None, ["\n\n"], [], "cpu")
    assert set(tables.prm_token.tolist()) == {NOT_READ}
    assert tables.separator.numel() == 0
