"""A Hugging Face fast tokenizer as it was read: the bytes of every token id, and what splits text.

Delimiters, stop strings and streamed text all work on these bytes, so they agree with one another,
and the device need not decode text.
"""

from __future__ import annotations

import codecs
import gc
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SENTENCEPIECE_DECODERS = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}

ToBytes = Callable[[str], bytes]


def _alphabet() -> str:
    """GPT-2's: a printable Latin-1 character stands for its own byte.

    The letters from U+0100 on stand for the 68 other bytes, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = map(chr, range(0x100, 0x144))
    return "".join(chr(byte) if byte in printable else next(others) for byte in range(256))


_LETTERS = _alphabet()  # of the bytes 0 to 255
_BYTE_OF_LETTER = {ord(letter): byte for byte, letter in enumerate(_LETTERS)}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as it was read: its tokens as bytes, and what cuts text into them."""

    token_bytes: tuple[bytes, ...]  # what an id adds to the text; b"" for special and unused ids
    special_text: Mapping[int, str]  # how the special tokens are written
    added_ids: frozenset[int]  # tokens, special or not, that are matched before the model runs
    space_mark: str | None  # how sentencepiece writes a space; None for byte-level letters
    backend: Tokenizer = field(repr=False, compare=False)  # what was read

    @property
    def num_tokens(self) -> int:
        """The ids that may be sampled are below this; a model may have more, as padding."""
        return len(self.token_bytes)

    def join(self, ids: Iterable[int]) -> bytes:
        """The bytes of the text of `ids`, special tokens left out."""
        return b"".join(self.token_bytes[i] for i in ids)

    def spell(self, data: bytes) -> str | None:
        """`data` in the alphabet of the tokenizer's model; None if it cannot be written in it."""
        if self.space_mark is None:
            return byte_letters(data)
        try:
            return data.decode("utf-8").replace(" ", self.space_mark)
        except UnicodeDecodeError:
            return None


@contextmanager
def collector_paused() -> Iterator[None]:
    """Python's garbage collector does not run meanwhile.

    Reading the JSON of a large vocabulary makes hundreds of thousands of lists and no cycles; the
    collector, which such a number sets off, would look through all objects again and again, for
    longer than the reading takes.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def backend_of(tokenizer: Any) -> Tokenizer:
    """The `tokenizers.Tokenizer` behind a transformers fast tokenizer (or the object itself).

    Raises:
        ValueError: the tokenizer is a slow one, written in Python.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, Tokenizer):
        raise ValueError(
            f"tokenizer must be a fast one, with a tokenizer.json, got {type(tokenizer).__name__}"
        )
    return backend


def plain_encoder(tokenizer: Any) -> Tokenizer:
    """A copy of the tokenizer that reads all text as plain text.

    It does not truncate or pad, and reads a special token in the text letter by letter: a question
    that contains `<|im_end|>` cannot end its own turn. It is a copy because these settings belong
    to the tokenizer, which the caller goes on using. Both have one model: that of a large
    vocabulary takes a second to copy.

    Args:
        tokenizer: a transformers fast tokenizer, or the `tokenizers.Tokenizer` behind one.

    Raises:
        ValueError: the tokenizer is not a fast one.
    """
    backend = backend_of(tokenizer)
    encoder = Tokenizer(backend.model)
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        part = getattr(backend, name)
        if part is not None:
            setattr(encoder, name, part)
    added = backend.get_added_tokens_decoder()
    encoder.add_tokens([added[i] for i in sorted(added)])
    encoder.encode_special_tokens = True
    return encoder


def read_vocabulary(tokenizer: Any) -> Vocabulary:
    """The bytes of every id of `tokenizer`.

    Supported are byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM2) and sentencepiece-style
    vocabularies (Llama 2, Mistral, Gemma) with or without byte fallback.

    Raises:
        ValueError: the tokenizer is not a fast one, or its decoder is of another kind.
    """
    backend = backend_of(tokenizer)
    space_mark, to_bytes = _decoding(backend)
    ids = backend.get_vocab(with_added_tokens=True)
    added = backend.get_added_tokens_decoder()
    special = {i: token.content for i, token in added.items() if token.special}
    for i in getattr(tokenizer, "all_special_ids", ()):
        if i is not None:  # a special token that is "" has no id
            special.setdefault(i, str(backend.id_to_token(i)))
    token_bytes = [b""] * (max(ids.values(), default=-1) + 1)
    for token, i in ids.items():
        if i not in special:
            token_bytes[i] = to_bytes(token)
    return Vocabulary(tuple(token_bytes), special, frozenset(added), space_mark, backend)


def byte_letters(data: bytes) -> str:
    """`data` in the alphabet of byte-level BPE: one letter per byte."""
    return codecs.charmap_decode(data, "strict", _LETTERS)[0]


def component(part: Any) -> dict[str, Any]:
    """The settings of a tokenizer's decoder, pre-tokenizer, normalizer or model; {} if it has none.

    They come from its pickling state, JSON that is far shorter than the whole tokenizer's.
    """
    return {} if part is None else json.loads(part.__getstate__())


def _decoding(backend: Tokenizer) -> tuple[str | None, ToBytes]:
    """The space mark, and a function from a token to its bytes, as the tokenizer decodes it."""
    decoder = component(backend.decoder)
    parts = decoder.get("decoders", [decoder]) if decoder else []
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds and kinds <= {"ByteLevel", "Fuse"}:
        return None, _byte_level
    if kinds and kinds <= _SENTENCEPIECE_DECODERS:
        mark = _space_mark(parts)
        if mark is not None:
            return mark, _sentencepiece(mark, byte_fallback="ByteFallback" in kinds)
    names = [part["type"] for part in parts] or None
    raise ValueError(
        "the decoder of the tokenizer must be byte-level (ByteLevel) or sentencepiece-style "
        f"(Metaspace, or Replace '▁' by ' '), got {names}"
    )


def _space_mark(parts: list[dict[str, Any]]) -> str | None:
    """The character that stands for a space; None if the decoder rewrites more than that."""
    marks = []
    for part in parts:
        if part["type"] == "Metaspace":
            marks.append(part["replacement"])
        elif part["type"] == "Replace":
            mark = part["pattern"].get("String")
            if mark is None or part["content"] != " ":
                return None
            marks.append(mark)
        elif part["type"] == "Strip" and (part["content"] != " " or part["stop"] != 0):
            return None
    return marks[0] if len(marks) == 1 else None


def _byte_level(token: str) -> bytes:
    try:
        return codecs.charmap_encode(token, "strict", _BYTE_OF_LETTER)[0]
    except UnicodeEncodeError:  # an added token, stored as plain text
        return token.encode("utf-8")


def _sentencepiece(mark: str, byte_fallback: bool) -> ToBytes:
    def to_bytes(token: str) -> bytes:
        byte = _BYTE_TOKEN.fullmatch(token) if byte_fallback else None
        if byte is not None:
            return bytes([int(byte[1], 16)])
        return token.replace(mark, " ").encode("utf-8")

    return to_bytes
