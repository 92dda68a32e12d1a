"""Whether two tokenizers are the same but for their special tokens.

If they are, the device writes the PRM's context from the generator's ids; if not, the host writes
it by way of text.
"""

from __future__ import annotations

from typing import Any

from tokenizers.models import Model

from rsd_engine.steps.vocabulary import Vocabulary, backend_of, component, read_vocabulary

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


def shares_vocabulary(tokenizer: Any, prm_tokenizer: Any) -> bool:
    """True if all ordinary tokens have the same ids and bytes in both, and both split text alike.

    Added tokens may differ: one tokenizer's `<|quad_end|>` may be the other's `<extra_0>`. So may
    Unicode normalisation (NFC), which does not change text that is already normal.

    Raises:
        ValueError: as `read_vocabulary`.
    """
    if backend_of(tokenizer) is backend_of(prm_tokenizer):
        return True
    ours, theirs = read_vocabulary(tokenizer), read_vocabulary(prm_tokenizer)
    return (
        same_tokens(ours, theirs)
        and splits_text(tokenizer) == splits_text(prm_tokenizer)
        and _same_model(backend_of(tokenizer).model, backend_of(prm_tokenizer).model)
    )


def same_tokens(ours: Vocabulary, theirs: Vocabulary) -> bool:
    """True if the ids that are added tokens in neither vocabulary have the same bytes in both."""
    either_added = ours.added_ids | theirs.added_ids
    longer = max(ours.num_tokens, theirs.num_tokens)
    return all(
        _bytes_at(ours, i) == _bytes_at(theirs, i) for i in range(longer) if i not in either_added
    )


def _bytes_at(vocabulary: Vocabulary, token: int) -> bytes:
    return vocabulary.token_bytes[token] if token < vocabulary.num_tokens else b""


def _same_model(ours: Model, theirs: Model) -> bool:
    """True if both models split a word alike; their vocabularies are compared by bytes."""
    if ours.__getstate__() == theirs.__getstate__():  # saves parsing megabytes of JSON
        return True
    first, second = component(ours), component(theirs)
    # None and "" mean the same for an affix, as do false and nothing for a switch.
    return all((first.get(name) or None) == (second.get(name) or None) for name in _MODEL_RULES)


def splits_text(tokenizer: Any) -> tuple[Any, ...]:
    """What decides how a tokenizer cuts text into words, to be compared with another's."""
    backend = backend_of(tokenizer)
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
