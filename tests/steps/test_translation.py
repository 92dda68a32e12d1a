"""Steps of one vocabulary in the tokens of another: the same text, whatever the tokenizers are."""

from __future__ import annotations

import random
from itertools import permutations

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from rsd_engine.steps.translation import StepTranslator
from rsd_engine.steps.vocabulary import read_vocabulary
from tests.steps.toy_tokenizers import (
    corpus,
    id_of,
    llama_like,
    math_like,
    qwen_like,
    smollm_like,
)

FAMILIES = {
    "qwen": qwen_like(),
    "math": math_like(),
    "smollm": smollm_like(),
    "llama": llama_like(),
}


def translator(source: Tokenizer, target: Tokenizer, num_ids: int = 10**6) -> StepTranslator:
    return StepTranslator(read_vocabulary(source), read_vocabulary(target), num_ids)


def text_of(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Special tokens left out, spaces as they are."""
    return read_vocabulary(tokenizer).join(ids).decode()


@pytest.mark.parametrize(("first", "second"), list(permutations(FAMILIES, 2)))
def test_the_text_stays(first: str, second: str) -> None:
    """Also its spaces: a step goes on after other text."""
    source, target = FAMILIES[first], FAMILIES[second]
    translate = translator(source, target).translate
    rng = random.Random(first + second)
    for text in rng.sample(corpus(), 12):
        ids = source.encode(text, add_special_tokens=False).ids
        cut = rng.randrange(1, len(ids))
        for step in (ids, ids[:cut], ids[cut:]):
            wanted = read_vocabulary(source).join(step).decode("utf-8", errors="replace")
            assert text_of(target, translate(step)) == wanted


@pytest.mark.parametrize("name", ["qwen", "math", "smollm"])
def test_byte_level_ids_are_those_of_the_tokenizer(name: str) -> None:
    target = FAMILIES[name]
    source = FAMILIES["llama"]
    translate = translator(source, target).translate
    for text in corpus()[:10]:
        written = text_of(source, source.encode(text, add_special_tokens=False).ids)
        ids = translate(source.encode(text, add_special_tokens=False).ids)
        assert ids == target.encode(written, add_special_tokens=False).ids


def test_special_tokens() -> None:
    """One that both have is the other's; one that only the writer has becomes letters."""
    source = qwen_like(["<|mine|>", "<|im_end|>", "<|far|>"])
    target = smollm_like()
    mine, both, far = (id_of(source, t) for t in ("<|mine|>", "<|im_end|>", "<|far|>"))
    a, b = (source.encode(text, add_special_tokens=False).ids for text in ("two", " then"))
    encode = target.encode
    translate = translator(source, target).translate
    found = translate([*a, both, *b])
    two, then = (encode(text, add_special_tokens=False).ids for text in ("two", " then"))
    assert found == [*two, id_of(target, "<|im_end|>"), *then]
    assert text_of(target, translate([*a, mine, *b])) == "two<|mine|> then"
    limited = translator(source, target, id_of(target, "<|im_end|>")).translate
    assert text_of(target, limited([both])) == "<|im_end|>", "the model has no row for it"
    assert text_of(target, translate([far])) == "<|far|>"


def test_text_that_spells_a_special_token_stays_text() -> None:
    source, target = llama_like(), qwen_like()
    encoder = Tokenizer.from_str(source.to_str())
    encoder.encode_special_tokens = True
    ids = encoder.encode("a<|im_end|>b", add_special_tokens=False).ids
    found = translator(source, target).translate(ids)
    assert id_of(target, "<|im_end|>") not in found
    assert text_of(target, found).strip() == "a<|im_end|>b"


def test_part_of_a_character() -> None:
    """At the end or the beginning of a step."""
    source, target = qwen_like(), smollm_like()
    ids = [id_of(source, letter) for letter in "ae"]
    first, second = (id_of(source, letter) for letter in "Ãī")  # of É
    translate = translator(source, target).translate
    assert text_of(target, translate([*ids, first])) == "ae\ufffd"
    assert text_of(target, translate([second, *ids])) == "\ufffdae"
    assert text_of(target, translate([*ids, first, second])) == "aeÉ"


@pytest.mark.parametrize("where", ["Metaspace", "Prepend", "ByteLevel"])
def test_nothing_is_put_before_a_step(where: str) -> None:
    if where == "ByteLevel":
        target = Tokenizer.from_str(qwen_like().to_str())
        target.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    else:
        target = Tokenizer.from_str(llama_like().to_str())
        plain = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
        target.pre_tokenizer = plain if where == "Metaspace" else None
        parts = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        target.normalizer = None if where == "Metaspace" else normalizers.Sequence(parts)
    assert text_of(target, target.encode("two", add_special_tokens=False).ids) == " two"
    source = smollm_like()
    for text in ("two", " two", "\n\nx"):
        ids = source.encode(text, add_special_tokens=False).ids
        assert text_of(target, translator(source, target).translate(ids)) == text
