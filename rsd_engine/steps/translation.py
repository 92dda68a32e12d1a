"""A step of one writer in the tokens of another that has another vocabulary, by way of its text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE

from rsd_engine.steps.vocabulary import Vocabulary, component


class StepTranslator:
    """Translates ids of one tokenizer into ids of another, a step at a time.

    Each step is encoded alone, as text that goes on after other text, so that what was encoded
    before never changes.

    Args:
        vocabulary: of the model that wrote the step.
        reader: that of the model that will read it.
        num_ids: ids that this model has; its tokenizer may know more.
    """

    def __init__(self, vocabulary: Vocabulary, reader: Vocabulary, num_ids: int) -> None:
        id_of_text = {text: i for i, text in reader.special_text.items() if i < num_ids}
        special = vocabulary.special_text
        self._vocabulary = vocabulary
        self._special_ids = {i: id_of_text[t] for i, t in special.items() if t in id_of_text}
        self._encoder = _continuing(reader.backend, num_ids)

    def translate(self, token_ids: Sequence[int]) -> list[int]:
        """The ids of a step's text.

        A special token that both tokenizers have is the other's; one that the other does not have
        is read letter by letter, like text that looks like one. Bytes that are not UTF-8, as in a
        character that the end of the step cuts in two, become U+FFFD.
        """
        found, data = list[int](), b""
        for token in token_ids:
            if token in self._special_ids:
                found += [*self._encode(data), self._special_ids[token]]
                data = b""
            elif token in self._vocabulary.special_text:
                data += self._vocabulary.special_text[token].encode()
            else:
                data += self._vocabulary.token_bytes[token]
        return found + self._encode(data)

    def _encode(self, data: bytes) -> list[int]:
        text = data.decode("utf-8", errors="replace")
        return self._encoder.encode(text, add_special_tokens=False).ids


def _continuing(backend: Tokenizer, num_ids: int) -> Tokenizer:
    """A plain encoder without the space that some put before a text, and without unknown ids."""
    settings = json.loads(Tokenizer(BPE()).to_str())
    for name in ("normalizer", "pre_tokenizer"):
        settings[name] = _without_prefix(component(getattr(backend, name)))
    changed = Tokenizer.from_str(json.dumps(settings))
    changed.model = backend.model  # shared, as by `plain_encoder`
    added = backend.get_added_tokens_decoder()
    changed.add_tokens([added[i] for i in sorted(added) if i < num_ids])
    changed.encode_special_tokens = True
    return changed


def _without_prefix(part: dict[str, Any]) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer that adds nothing to the beginning of a text."""
    if not part or part["type"] == "Prepend":
        return None
    changed = dict(part)
    for name in ("normalizers", "pretokenizers"):
        if name in part:
            inner = [_without_prefix(one) for one in part[name]]
            changed[name] = [one for one in inner if one is not None]
    if "add_prefix_space" in part:
        changed["add_prefix_space"] = False
    if "prepend_scheme" in part:
        changed["prepend_scheme"] = "never"
    return changed
