"""The PRM's tokens of a step: by tables, and by the text-level rule they must agree with."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rsd_engine.steps.automaton import ByteAutomaton, build_automaton
from rsd_engine.steps.merge_tables import build_merge_tables
from rsd_engine.steps.tables import build_step_tables
from rsd_engine.steps.text_bridge import TextBridge
from rsd_engine.steps.vocabulary import Vocabulary, plain_encoder, read_vocabulary
from rsd_kernels.bridge.merge_twin import merge_bytes, retokenise_end
from rsd_kernels.bridge.twin import prm_step_tokens
from rsd_kernels.state.tables import MergeTables, StepTables
from tests.steps.toy_tokenizers import id_of, llama_like, math_like, qwen_like, smollm_like
from tests.text import replace_once

SEPARATOR = 7
BLANK = "\n\n"


@dataclass
class Family:
    """A tokenizer with everything that is built from it."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary
    tables: StepTables
    merges: MergeTables | None
    automaton: ByteAutomaton
    bridge: TextBridge


def family(tokenizer: Tokenizer) -> Family:
    vocabulary = read_vocabulary(tokenizer)
    return Family(
        tokenizer,
        vocabulary,
        build_step_tables(vocabulary, vocabulary, [BLANK], [SEPARATOR], "cpu"),
        merges_of(tokenizer, [BLANK]),
        build_automaton([BLANK], 64, "step_delimiters"),
        TextBridge(vocabulary, plain_encoder(tokenizer), [SEPARATOR]),
    )


def merges_of(tokenizer: Tokenizer, delimiters: list[str]) -> MergeTables | None:
    return build_merge_tables(read_vocabulary(tokenizer), delimiters, "cpu")


FAMILIES = {
    "qwen": family(qwen_like()),
    "math": family(math_like()),
    "smollm": family(smollm_like()),
    "llama": family(llama_like()),
}
BYTE_LEVEL = ["qwen", "math", "smollm"]
PARTS = ["we", " add", "2", "$", ".", ")", " $", " (", "é", "日", "$.", "}", ")."]
TEXTS = st.lists(st.sampled_from([*PARTS, "\n", "\n\n\n", " ", "  "]), min_size=1, max_size=9).map(
    "".join
)


def first_step(ids: list[int], made: Family) -> tuple[list[int], int]:
    """The ids up to the first delimiter, what runs past it cut off, and the delimiter's bytes."""
    state = 0
    for i, token in enumerate(ids):
        data = made.vocabulary.token_bytes[token]
        state, end, match = made.automaton.find(state, data)
        if match:
            return ids[:i] + cut(token, end, made), match
    return ids, 0


def cut(token: int, num_bytes: int, made: Family) -> list[int]:
    if num_bytes == len(made.vocabulary.token_bytes[token]):
        return [token]
    entry = int(made.tables.prefix_entry[token]) + num_bytes - 1
    first, last = made.tables.prefix_start[entry : entry + 2].tolist()
    return made.tables.prefix_token[first:last].tolist()


def by_tables(step: list[int], delimiter_bytes: int, made: Family) -> list[int]:
    assert made.merges is not None
    ids = prm_step_tokens(step, delimiter_bytes, made.tables, made.merges)
    assert ids is not None
    return ids


@pytest.mark.parametrize("name", BYTE_LEVEL)
@given(text=TEXTS)
def test_tables_and_text_give_the_same_tokens(name: str, text: str) -> None:
    made = FAMILIES[name]
    ids = made.tokenizer.encode(text + BLANK, add_special_tokens=False).ids
    step, match = first_step(ids, made)
    body = text[: (text + BLANK).index(BLANK)]
    expected = [*made.tokenizer.encode(body, add_special_tokens=False).ids, SEPARATOR]
    assert match == 2
    assert by_tables(step, match, made) == expected
    assert made.bridge.step_tokens(step, match) == expected


@pytest.mark.parametrize("name", BYTE_LEVEL)
@given(data=st.data())
def test_any_sampled_ids_keep_their_bytes(name: str, data: st.DataObject) -> None:
    made = FAMILIES[name]
    ids = data.draw(st.lists(st.integers(0, made.vocabulary.num_tokens - 1), max_size=12))
    step, match = first_step(ids, made)
    *kept, separator = by_tables(step, match, made)
    whole = made.vocabulary.join(ids)
    end = whole.find(b"\n\n")
    assert made.vocabulary.join(kept) == (whole if end < 0 else whole[:end])
    assert separator == SEPARATOR


def test_the_last_word_must_be_merged_anew() -> None:
    """Why the prefix table alone is not enough: `}$.` with and without its blank line."""
    made = FAMILIES["math"]
    ids = made.tokenizer.encode("}$.\n\n", add_special_tokens=False)
    assert ids.tokens == ["}$", ".ĊĊ"]
    stripped = [id_of(made.tokenizer, token) for token in ("}$", ".")]
    canonical = made.tokenizer.encode("}$.", add_special_tokens=False)
    assert canonical.tokens == ["}", "$."]
    assert made.merges is not None
    assert retokenise_end(stripped, made.tables, made.merges) == canonical.ids
    assert by_tables(ids.ids, 2, made) == [*canonical.ids, SEPARATOR]
    # nothing is rewritten before the word, nor a word of one token
    before = made.tokenizer.encode("we}$ add", add_special_tokens=False).ids
    dot = id_of(made.tokenizer, ".")
    assert retokenise_end([*before, dot], made.tables, made.merges) == [*before, dot]


@pytest.mark.parametrize("name", BYTE_LEVEL)
@given(text=st.text(alphabet=".$)}(\n é", min_size=1, max_size=10))
def test_merging_bytes_is_the_models_own_tokenisation(name: str, text: str) -> None:
    made = FAMILIES[name]
    assert made.merges is not None
    spelled = made.vocabulary.spell(text.encode())
    expected = [token.id for token in made.tokenizer.model.tokenize(spelled)]
    assert merge_bytes(list(text.encode()), made.merges) == expected


def test_special_tokens_and_endings_without_delimiter() -> None:
    made = FAMILIES["qwen"]
    end = id_of(made.tokenizer, "<|im_end|>")
    ids = made.tokenizer.encode("we add.", add_special_tokens=False).ids
    assert by_tables([*ids, end], 0, made) == [*ids, SEPARATOR]
    assert made.bridge.step_tokens([*ids, end], 0) == [*ids, SEPARATOR]
    assert by_tables([], 0, made) == [SEPARATOR]


def test_vocabularies_the_device_cannot_follow_have_no_merge_tables() -> None:
    assert FAMILIES["llama"].merges is None
    unsplit = qwen_like()
    unsplit.pre_tokenizer = None
    assert merges_of(unsplit, [BLANK]) is None
    # a delimiter inside the words of this tokenizer
    assert merges_of(qwen_like(), ["a"]) is None


def test_bytes_without_a_token_matter_only_where_a_tail_may_hold_them() -> None:
    # 0xFF is never in a text, 0x2E is the full stop
    without_ff = json.loads(math_like().to_str())
    without_ff["model"]["vocab"].pop("ÿ")
    merges = merges_of(Tokenizer.from_str(json.dumps(without_ff)), [BLANK])
    assert merges is not None and merges.byte_token[0xFF] == -1 and merges.byte_token[0x2E] >= 0
    without_dot = json.loads(math_like().to_str())
    vocab = without_dot["model"]["vocab"]
    vocab["~."] = vocab.pop(".")
    without_dot["model"]["merges"] = []
    assert merges_of(Tokenizer.from_str(json.dumps(without_dot)), [BLANK]) is None


def test_looked_up_words_that_merging_does_not_reach_have_no_merge_tables() -> None:
    made = math_like().to_str()
    made = replace_once(made, '"ignore_merges":false', '"ignore_merges":true')
    assert merges_of(Tokenizer.from_str(made), [BLANK]) is not None
    unreachable = replace_once(made, '"vocab":{', '"vocab":{"((":9999,')
    assert merges_of(Tokenizer.from_str(unreachable), [BLANK]) is None


@given(text=st.text(alphabet="we ad2$.)é日\n", max_size=15))
def test_other_tokenizers_go_through_text(text: str) -> None:
    writer, prm = FAMILIES["llama"], FAMILIES["qwen"]
    bridge = TextBridge(writer.vocabulary, plain_encoder(prm.tokenizer), [1, 2])
    ids = prm.tokenizer.encode(text, add_special_tokens=False).ids
    written = writer.tokenizer.encode(text + BLANK, add_special_tokens=False).ids[1:]
    # ids[1:] drops the space that sentencepiece puts before a text, where it is a token of its own
    if writer.vocabulary.join(written) == (text + BLANK).encode():
        assert bridge.step_tokens(written, 2) == [*ids, 1, 2]


def test_half_a_character_becomes_a_replacement_character() -> None:
    made = FAMILIES["qwen"]
    half = made.vocabulary.token_bytes.index("日".encode()[:1])
    expected = made.tokenizer.encode("we\ufffd", add_special_tokens=False).ids
    ids = made.tokenizer.encode("we", add_special_tokens=False).ids
    assert made.bridge.step_tokens([*ids, half], 0) == [*expected, SEPARATOR]


def test_letters_that_look_like_special_tokens_stay_letters() -> None:
    made = FAMILIES["qwen"]
    text = b"<|im_end|>"
    ids = [made.vocabulary.token_bytes.index(bytes([byte])) for byte in text]
    assert made.vocabulary.join(made.bridge.step_tokens(ids, 0)[:-1]) == text
