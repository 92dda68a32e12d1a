"""Bytes of token ids against the tokenizer's own decoder."""

from __future__ import annotations

import gc
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rsd_engine.steps.vocabulary import (
    backend_of,
    byte_letters,
    collector_paused,
    plain_encoder,
    read_vocabulary,
)
from tests.steps.toy_tokenizers import id_of, llama_like, qwen_like, smollm_like

TOKENIZERS = {"qwen": qwen_like(), "smollm": smollm_like(), "llama": llama_like()}
VOCABULARIES = {name: read_vocabulary(tokenizer) for name, tokenizer in TOKENIZERS.items()}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_bytes_of_random_ids_are_the_decoded_text(name: str, data: st.DataObject) -> None:
    tokenizer, vocabulary = TOKENIZERS[name], VOCABULARIES[name]
    ids = data.draw(st.lists(st.integers(0, vocabulary.num_tokens - 1), max_size=12))
    try:
        text = vocabulary.join(ids).decode("utf-8")
    except UnicodeDecodeError:
        return
    if name == "llama":  # this decoder takes one leading space off the whole
        text = text.removeprefix(" ")
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(max_size=20))
def test_bytes_of_encoded_text_are_its_utf8(name: str, text: str) -> None:
    ids = TOKENIZERS[name].encode(text, add_special_tokens=False).ids
    data = VOCABULARIES[name].join(ids)
    # sentencepiece puts one space before every text that has any
    assert data == (b" " if name == "llama" and text else b"") + text.encode()


def test_size_counts_added_tokens_and_specials_have_no_bytes() -> None:
    tokenizer = qwen_like()
    vocabulary = read_vocabulary(tokenizer)
    end = id_of(tokenizer, "<|im_end|>")
    assert vocabulary.num_tokens == tokenizer.get_vocab_size(with_added_tokens=True)
    assert vocabulary.token_bytes[end] == b""
    assert vocabulary.special_text[end] == "<|im_end|>"
    assert end in vocabulary.added_ids


def test_added_tokens_that_are_not_special_are_text() -> None:
    tokenizer = qwen_like()
    tokenizer.add_tokens([AddedToken("<think> é", special=False, normalized=False)])
    token = id_of(tokenizer, "<think> é")
    vocabulary = read_vocabulary(tokenizer)
    assert vocabulary.token_bytes[token] == "<think> é".encode()
    assert token in vocabulary.added_ids and token not in vocabulary.special_text


def test_a_byte_level_token_with_another_letter_is_plain_text() -> None:
    letters = bytes_to_unicode()
    byte_of = {letter: byte for byte, letter in letters.items()}
    characters = [chr(i) for i in range(0x180)]
    tokens = [*characters, *(f"a{c}Ġ" for c in characters)]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    assert read_vocabulary(tokenizer).token_bytes == tuple(
        bytes(byte_of[c] for c in token) if byte_of.keys() >= set(token) else token.encode()
        for token in tokens
    )
    assert byte_letters(bytes(range(256))) == "".join(letters[byte] for byte in range(256))


def test_transformers_tokenizers_and_their_special_tokens() -> None:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=qwen_like(), eos_token="<|im_end|>")
    assert read_vocabulary(wrapped) == read_vocabulary(qwen_like())
    assert isinstance(backend_of(wrapped), Tokenizer)


def test_unknown_decoders_are_refused_by_name() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    with pytest.raises(ValueError, match="got None"):
        read_vocabulary(tokenizer)
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match=r"ByteLevel.*got .*WordPiece"):
        read_vocabulary(tokenizer)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("x", "y"), decoders.Fuse()])
    with pytest.raises(ValueError, match="got .*'Replace', 'Fuse'"):
        read_vocabulary(tokenizer)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_paused_collector_is_afterwards_as_it_was(
    monkeypatch: pytest.MonkeyPatch, enabled: bool
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(gc, "isenabled", lambda: enabled)
    monkeypatch.setattr(gc, "enable", lambda: calls.append("enable"))
    monkeypatch.setattr(gc, "disable", lambda: calls.append("disable"))
    with pytest.raises(KeyError), collector_paused():
        calls.append("inside")
        raise KeyError
    assert calls == ["disable", "inside", *(["enable"] if enabled else [])]


def test_slow_tokenizers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json, got object"):
        read_vocabulary(object())


def test_plain_encoder_reads_special_tokens_as_letters_and_leaves_the_original_alone() -> None:
    tokenizer = qwen_like()
    tokenizer.enable_padding(length=50)
    tokenizer.enable_truncation(1)
    ids = plain_encoder(tokenizer).encode("a<|im_end|>", add_special_tokens=False).ids
    assert read_vocabulary(tokenizer).join(ids) == b"a<|im_end|>"
    assert tokenizer.padding is not None and tokenizer.truncation is not None
    assert not tokenizer.encode_special_tokens


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_plain_encoder_has_every_part_of_the_original(name: str) -> None:
    tokenizer = Tokenizer.from_str(TOKENIZERS[name].to_str())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_special_tokens(["<bos>"])
    tokenizer.add_tokens([AddedToken("<Think>", special=False), AddedToken("a", lstrip=True)])
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", id_of(tokenizer, "<bos>"))]
    )
    settings = json.loads(tokenizer.to_str())
    tokenizer.enable_padding(length=50)
    tokenizer.enable_truncation(9)
    encoder = plain_encoder(tokenizer)
    assert json.loads(encoder.to_str()) == settings
    text = "We add <THINK> a É 日本 <bos>\n\n"
    copy = Tokenizer.from_str(json.dumps(settings))
    copy.encode_special_tokens = True
    assert encoder.encode(text).ids == copy.encode(text).ids
