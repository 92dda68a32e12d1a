"""Streamed text adds up to the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd_engine.steps.detokenize import Detokenizer, cut_at_stop
from rsd_engine.steps.vocabulary import Vocabulary, read_vocabulary
from tests.steps.toy_tokenizers import llama_like, qwen_like

QWEN = qwen_like()
VOCABULARIES = {"qwen": read_vocabulary(QWEN), "llama": read_vocabulary(llama_like())}


def pushed(made: Detokenizer, ids: list[int], sizes: list[int]) -> str:
    """All text of `ids` given in pieces of these sizes, the rest at the end."""
    text, at = "", 0
    for size in sizes:
        text += made.push(ids[at : at + size])
        at += size
    return text + made.finish(ids[at:])


@pytest.mark.parametrize("name", VOCABULARIES)
@given(data=st.data(), sizes=st.lists(st.integers(0, 3), max_size=8))
def test_pieces_add_up_to_the_bytes_of_the_whole(
    name: str, data: st.DataObject, sizes: list[int]
) -> None:
    vocabulary = VOCABULARIES[name]
    ids = data.draw(st.lists(st.integers(0, vocabulary.num_tokens - 1), max_size=15))
    stop = data.draw(st.lists(st.sampled_from(["a", "\n\n", "e t", "éé"]), max_size=2))
    whole = vocabulary.join(ids).decode("utf-8", errors="replace")
    assert pushed(Detokenizer(vocabulary, stop=stop), ids, sizes) == whole


@given(st.text(max_size=30), st.lists(st.integers(0, 3), max_size=8))
def test_equals_the_tokenizers_decoding(text: str, sizes: list[int]) -> None:
    ids = QWEN.encode(text, add_special_tokens=False).ids
    assert pushed(Detokenizer(VOCABULARIES["qwen"]), ids, sizes) == text == QWEN.decode(ids)


def test_a_character_comes_with_its_last_token() -> None:
    vocabulary = VOCABULARIES["qwen"]
    ids = [vocabulary.token_bytes.index(bytes([byte])) for byte in "日".encode()]
    made = Detokenizer(vocabulary)
    assert [made.push([i]) for i in ids] == ["", "", "日"]
    assert made.finish() == ""
    made = Detokenizer(vocabulary)
    assert made.push(ids[:2]) + made.finish() == "\ufffd"


def test_special_tokens_are_skipped_or_written() -> None:
    vocabulary = VOCABULARIES["qwen"]
    ids = QWEN.encode("we<|im_end|>add").ids
    assert Detokenizer(vocabulary).push(ids) == "weadd"
    assert Detokenizer(vocabulary, skip_special_tokens=False).push(ids) == "we<|im_end|>add"


def letters(vocabulary: Vocabulary, text: str) -> list[int]:
    return [vocabulary.token_bytes.index(bytes([byte])) for byte in text.encode()]


def test_text_that_may_begin_a_stop_string_waits() -> None:
    vocabulary = VOCABULARIES["qwen"]
    made = Detokenizer(vocabulary, stop=["END"])
    assert made.push(letters(vocabulary, "xE")) == "x"
    assert made.push(letters(vocabulary, "N")) == ""
    assert made.push(letters(vocabulary, "x")) == "ENx"
    assert made.push(letters(vocabulary, "EN")) == ""
    assert made.finish(letters(vocabulary, "D"), stopped=True) == ""


@given(st.text(alphabet="ab", max_size=12), st.integers(0, 12), st.booleans())
def test_stopped_text_is_cut_where_the_last_token_completes_a_stop(
    text: str, cut: int, include: bool
) -> None:
    vocabulary, stop = VOCABULARIES["qwen"], "aba"
    text = text + stop  # as the device stops: the last token completes it
    made = Detokenizer(vocabulary, stop=[stop], include_stop=include)
    ids = letters(vocabulary, text)
    cut = min(cut, len(ids) - 1)
    out = made.push(ids[:cut]) + made.finish(ids[cut:], stopped=True)
    assert out == (text if include else text[: -len(stop)])


def test_cut_at_stop() -> None:
    assert cut_at_stop("one two three", ["three", "two"]) == ("one ", "two")
    assert cut_at_stop("one two three", ["two"], include=True) == ("one two", "two")
    assert cut_at_stop("one", ["two"]) == ("one", None)
    assert cut_at_stop("one", []) == ("one", None)
    # complete first wins over begun first; of two complete at once, the longer
    assert cut_at_stop("abcd", ["abcd", "bc"]) == ("a", "bc")
    assert cut_at_stop("abc", ["bc", "abc"]) == ("", "abc")
    # a string complete before `after` does not count, one that ends past it does
    assert cut_at_stop("xx ab ab", ["ab"], after=5) == ("xx ab ", "ab")
    assert cut_at_stop("xx ab ab", ["ab"], after=4) == ("xx ", "ab")
