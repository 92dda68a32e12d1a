"""What is refused, and what fails while slots guess."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rsd_engine import Engine, SamplingParams
from rsd_engine.sampling_params import SpeculateName
from tests.engine.failures.test_isolation import (
    BAD,
    GOOD,
    PARAMS,
    assert_only_bad_failed,
    failing,
)
from tests.engine.guesses.runs import told, with_guesses
from tests.engine.harness.runs import generate
from tests.tiny_models import TinyModels, make_tiny_models, other_tokenizer


@pytest.fixture(scope="module")
def engine(tiny: TinyModels) -> Iterator[Engine]:
    with Engine(**tiny.sources(), device="cpu", max_num_seqs=4, max_guesses=8) as built:
        yield built


@pytest.mark.parametrize("speculate", ["draft", "rejected+draft", "ngram"])
@pytest.mark.parametrize("op", ["DRAFT.forward", "DRAFT.write", "TARGET.forward", "TARGET.write"])
def test_an_op_that_fails_while_others_guess(
    engine: Engine, op: str, speculate: SpeculateName
) -> None:
    wanted = generate(engine, GOOD, PARAMS)
    asked = with_guesses(PARAMS, speculate)
    with failing(engine, op, MemoryError("no memory")):
        found = generate(engine, [*GOOD, BAD], asked)
    assert_only_bad_failed(engine, found, wanted, f"{op} failed: MemoryError")
    assert [told(r) for r in found[:-1]] == [told(r) for r in wanted]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_guesses": 0, "speculate": "draft"}, r"num_guesses must be in \[1, 64\], got 0"),
        ({"num_guesses": 65, "speculate": "ngram"}, r"num_guesses must be in \[1, 64\], got 65"),
        ({"num_guesses": 3}, "num_guesses is 3, and speculate is None; leave it out"),
        ({"num_guesses": 3, "speculate": "rejected"}, "num_guesses is 3, and speculate is 'rej"),
        ({"speculate": "medusa"}, "speculate must be None, 'draft', 'rejected', .*got 'medusa'"),
        ({"speculate": True}, "speculate must be None, 'draft', .*got True"),
    ],
)
def test_values(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        SamplingParams(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("speculate", "mode", "said"),
    [
        ("draft", "draft", "the target writes nothing in mode 'draft'"),
        ("rejected", "target", "nothing is rejected in mode 'target'; use 'draft' or 'ngram'"),
        ("rejected+draft", "target", "nothing is rejected in mode 'target'"),
    ],
)
def test_modes(engine: Engine, speculate: Any, mode: Any, said: str) -> None:
    refused(engine, SamplingParams(speculate=speculate, mode=mode), said)


def test_engines(tiny: TinyModels) -> None:
    with Engine(target=tiny.target, device="cpu", max_guesses=4) as alone:
        refused(alone, SamplingParams(speculate="draft"), "no draft was loaded; use 'ngram'")
    with Engine(**tiny.sources(), device="cpu") as without:
        said = "this engine was made without room for guesses; make it with max_guesses=32"
        refused(without, SamplingParams(speculate="ngram", mode="target"), said)
    for value in (-1, 257, 1.5):
        with pytest.raises(ValueError, match=r"max_guesses must be .*got"):
            Engine(target=tiny.target, device="cpu", max_guesses=value)  # type: ignore[arg-type]


def test_two_vocabularies(tmp_path: Path) -> None:
    folders = make_tiny_models(tmp_path, draft_tokenizer=other_tokenizer())
    with Engine(**folders.sources(), device="cpu", max_guesses=4) as engine:
        for mode in ("rsd", "target"):
            params = SamplingParams(speculate="ngram", mode=mode)
            refused(engine, params, "draft and target have different tokenizers here")
    with pytest.raises(ValueError, match="guesses need a draft and a target of one tokenizer, and"):
        Engine(folders.draft, folders.target, device="cpu", max_guesses=4)


def refused(engine: Engine, params: SamplingParams, said: str) -> None:
    """In one line, before anything starts."""
    with pytest.raises(ValueError, match=said) as caught:
        generate(engine, ["a"], params)
    assert f"speculate is {params.speculate!r}, and " in str(caught.value)
    assert "\n" not in str(caught.value) and not engine.parts.core.has_work
