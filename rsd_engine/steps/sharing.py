"""Whether two tokenizers are the same but for their special tokens.

If they are, the device writes the PRM's context from the generator's ids; if not, the host writes
it by way of text.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import Model

from rsd_engine.steps.vocabulary import Vocabulary, component

# The settings of a BPE or Unigram model that decide, besides its vocabulary, how text is split.
_MODEL_RULES = (
    "type",
    "merges",
    "ignore_merges",
    "byte_fallback",
    "fuse_unk",
    "continuing_subword_prefix",
    "end_of_word_suffix",
)


def shares_vocabulary(ours: Vocabulary, theirs: Vocabulary) -> bool:
    """True if all ordinary tokens have the same ids and bytes in both, and both split text alike.

    Added tokens may differ: one tokenizer's `<|quad_end|>` may be the other's `<extra_0>`. So may
    Unicode normalisation (NFC), which does not change text that is already normal.
    """
    return first_difference(ours, theirs) is None


def first_difference(
    ours: Vocabulary, theirs: Vocabulary, names: tuple[str, str] = ("one", "the other")
) -> str | None:
    """Why two tokenizers do not share a vocabulary (`shares_vocabulary`); None if they do.

    Args:
        ours: one vocabulary.
        theirs: the other.
        names: what to call the two.
    """
    if ours.backend is theirs.backend:
        return None
    token = _first_differing_id(ours, theirs)
    if token is not None:
        first, second = (_shown(_bytes_at(v, token)) for v in (ours, theirs))
        return f"id {token} is {first} in {names[0]} and {second} in {names[1]}"
    if splits_text(ours.backend) != splits_text(theirs.backend):
        return "they cut text into words differently (pre_tokenizer, normalizer)"
    if not _same_model(ours.backend.model, theirs.backend.model):
        return "they put tokens together differently (merges)"
    return None


def first_special_difference(
    ours: Vocabulary, theirs: Vocabulary, names: tuple[str, str] = ("one", "the other")
) -> str | None:
    """The first id of both that is a special token in one and not the same in the other.

    Args:
        ours: one vocabulary.
        theirs: the other.
        names: what to call the two.
    """
    first, second = ours.special_text, theirs.special_text
    shared = min(ours.num_tokens, theirs.num_tokens)
    for i in sorted(first.keys() | second.keys()):
        if i < shared and first.get(i) != second.get(i):
            one, other = (repr(v[i]) if i in v else "no special token" for v in (first, second))
            return f"id {i} is {one} in {names[0]} and {other} in {names[1]}"
    return None


def _first_differing_id(ours: Vocabulary, theirs: Vocabulary) -> int | None:
    """The first id that is an added token in neither and does not have the same bytes in both."""
    either_added = ours.added_ids | theirs.added_ids
    pairs = enumerate(zip_longest(ours.token_bytes, theirs.token_bytes, fillvalue=b""))
    return next((i for i, (a, b) in pairs if a != b and i not in either_added), None)


def _shown(data: bytes) -> str:
    """A token for people; part of a character is shown as bytes."""
    try:
        return repr(data.decode("utf-8")) if data else "no token"
    except UnicodeDecodeError:
        return str(data).removeprefix("b")


def _bytes_at(vocabulary: Vocabulary, token: int) -> bytes:
    return vocabulary.token_bytes[token] if token < vocabulary.num_tokens else b""


def _same_model(ours: Model, theirs: Model) -> bool:
    """True if both models split a word alike; their vocabularies are compared by bytes."""
    if ours.__getstate__() == theirs.__getstate__():  # saves parsing megabytes of JSON
        return True
    first, second = component(ours), component(theirs)
    # None and "" mean the same for an affix, as do false and nothing for a switch.
    return all((first.get(name) or None) == (second.get(name) or None) for name in _MODEL_RULES)


def splits_text(backend: Tokenizer) -> tuple[Any, ...]:
    """What decides how a tokenizer cuts text into words, to be compared with another's."""
    return (
        _without(component(backend.pre_tokenizer), "trim_offsets"),  # offsets, not tokens
        _without_nfc(component(backend.normalizer)),
    )


def _without(part: dict[str, Any], name: str) -> dict[str, Any]:
    kept = {key: value for key, value in part.items() if key != name}
    if "pretokenizers" in kept:
        kept["pretokenizers"] = [_without(inner, name) for inner in kept["pretokenizers"]]
    return kept


def _without_nfc(normalizer: dict[str, Any]) -> list[dict[str, Any]]:
    parts = normalizer.get("normalizers", [normalizer] if normalizer else [])
    return [part for part in parts if part["type"] != "NFC"]
