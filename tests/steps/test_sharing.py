"""When the PRM's ids can be made from the generator's ids, and when not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers

from rsd_engine.steps.sharing import shares_vocabulary
from rsd_engine.steps.vocabulary import read_vocabulary
from tests.steps.toy_tokenizers import CHAT_TOKENS, llama_like, math_like, qwen_like, smollm_like


def share(first: Tokenizer, second: Tokenizer) -> bool:
    return shares_vocabulary(read_vocabulary(first), read_vocabulary(second))


def edited(tokenizer: Tokenizer, edit: Callable[[dict[str, Any]], object]) -> Tokenizer:
    state = json.loads(tokenizer.to_str())
    edit(state)
    return Tokenizer.from_str(json.dumps(state))


def test_special_tokens_may_mean_other_things() -> None:
    stock = qwen_like([*CHAT_TOKENS, "<|quad_end|>"])
    prm = qwen_like([*CHAT_TOKENS, "<extra_0>"])
    assert stock.token_to_id("<|quad_end|>") == prm.token_to_id("<extra_0>")
    assert share(stock, prm) and share(prm, stock)


def test_one_side_may_have_more_added_tokens() -> None:
    more = qwen_like()
    more.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    assert share(more, qwen_like()) and share(qwen_like(), more)


def test_nfc_does_not_matter_other_normalizers_do() -> None:
    nfc, lower = qwen_like(), qwen_like()
    nfc.normalizer = normalizers.NFC()
    lower.normalizer = normalizers.Lowercase()
    assert share(nfc, qwen_like())
    assert not share(lower, qwen_like())


@pytest.mark.parametrize(
    "other", [smollm_like(), llama_like(), math_like()], ids=["smollm", "llama", "math"]
)
def test_other_families_do_not_share(other: Tokenizer) -> None:
    assert not share(qwen_like(), other)
    assert not share(other, qwen_like())
    assert share(other, other)


def test_other_merges_do_not_share() -> None:
    other = edited(math_like(), lambda state: state["model"]["merges"].reverse())
    assert not share(math_like(), other)


def test_another_split_does_not_share() -> None:
    other = math_like()
    other.pre_tokenizer = smollm_like().pre_tokenizer
    assert not share(math_like(), other)


def test_two_ids_exchanged_do_not_share() -> None:
    def exchange(state: dict[str, Any]) -> None:
        vocab = state["model"]["vocab"]
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]

    assert not share(qwen_like(), edited(qwen_like(), exchange))
