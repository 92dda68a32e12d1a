"""Which format a PRM has: detected, named, of one's own; and what follows every step."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rsd_engine import Engine, PrmTemplate, SamplingParams, Threshold
from rsd_engine.cli.config_file import read_config
from rsd_engine.cli.engine_options import engine_arguments
from rsd_engine.cli.generate.options import GenerateOptions
from rsd_engine.models.reward.skywork import SKYWORK
from tests.engine.harness.runs import PROMPTS, Fresh, decisions, generate, scores
from tests.tiny_models import TinyModels, make_tiny_models

PARAMS = SamplingParams(temperature=0.0, max_tokens=60, policy=Threshold(0.5))
OWN = PrmTemplate("<s>Problem: {question} Solution:", separator="$\n", threshold=0.4, name="mine")


def rewards_by_hand(
    engine: Engine, question: str, texts: list[str], prompt: str, separator: str
) -> list[float]:
    """Rewards of a plain forward over the prompt and the steps, each tokenised alone.

    The PRM's tokenizer is that of the writers.
    """

    def ids(text: str) -> list[int]:
        return list(engine.get_tokenizer().encode(text, add_special_tokens=False))

    fresh, row, found = Fresh(engine), ids(prompt.format(question=question)), []
    for text in texts:
        row = [*row, *ids(text), *ids(separator)]
        found.append(fresh.reward(row))
    return found


def accepted(engine: Engine, question: str) -> tuple[list[str], list[float]]:
    """Steps without their delimiters, and their rewards, where none is rejected."""
    params = replace(PARAMS, policy=Threshold(0.0), ignore_eos=True, max_step_tokens=12)
    [result] = generate(engine, [question], params)
    return [step.text for step in result.outputs[0].steps], scores(result)


def test_a_name_says_what_is_detected_otherwise(engine: Engine, tiny: TinyModels) -> None:
    wanted = [decisions(result) for result in generate(engine, PROMPTS, PARAMS)]
    for given in ("Skywork-o1-Open-PRM", "skywork-o1-open-prm", SKYWORK):
        with Engine(**tiny.sources(), device="cpu", prm_format=given) as named:
            assert named.parts.models.prm is not None
            assert named.parts.models.prm.family.name == SKYWORK.name
            found = [decisions(result) for result in generate(named, PROMPTS, PARAMS)]
        assert found == wanted


def test_a_name_where_the_checkpoint_does_not_tell(tiny: TinyModels, tmp_path: Path) -> None:
    """A Llama with a value head that calls itself a Llama, nothing in its files telling more."""
    folder = shutil.copytree(tiny.prm, tmp_path / "prm")
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Qwen2ForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    sources = tiny.sources() | {"prm": folder}
    with Engine(**sources, device="cpu", prm_format="TRL-value-head") as built:
        prm = built.parts.models.prm
        assert prm is not None and prm.family.name == "TRL-value-head"
        texts, found = accepted(built, "What is 2?")
        texts = [text.removesuffix("\n\n") for text in texts]
        wanted = rewards_by_hand(built, "What is 2?", texts, "<s>{question}\n", "\n\n")
        assert found == pytest.approx(wanted, abs=1e-5) and len(found) > 1


@pytest.mark.parametrize("given", [OWN, vars(OWN)], ids=["object", "dict"])
def test_a_format_of_ones_own(tiny: TinyModels, given: PrmTemplate | Mapping[str, Any]) -> None:
    with Engine(**tiny.sources(), device="cpu", prm_format=given) as built:
        assert built.parts.rules.policy == Threshold(0.4)
        texts, found = accepted(built, "What is 2?")
        texts = [text.removesuffix("\n\n") for text in texts]
        wanted = rewards_by_hand(
            built, "What is 2?", texts, "<s>Problem: {question} Solution:", "$\n"
        )
    assert found == pytest.approx(wanted, abs=1e-5) and len(found) > 1


@pytest.mark.parametrize(
    ("arguments", "delimiter", "separator"),
    [
        ({}, "\n\n", "\n\n"),
        ({"step_delimiters": "\n"}, "\n", "\n"),
        ({"step_delimiters": ["\n", "b"]}, "\n", "\n"),
        ({"step_delimiters": "\n", "prm_separator": "\n\n"}, "\n", "\n\n"),
        ({"prm_separator": ")."}, "\n\n", ")."),  # two tokens: both follow each step
        ({"prm_separator": "</s>"}, "\n\n", "</s>"),
        ({"step_delimiters": "\n", "prm_format": OWN}, "\n", "$\n"),
    ],
)
def test_what_follows_every_step(
    tiny: TinyModels, arguments: dict[str, Any], delimiter: str, separator: str
) -> None:
    """Skywork's follows the first of the step delimiters, unless it is said."""
    prompt = OWN.prompt if "prm_format" in arguments else "<s>{question}\n"
    with Engine(**tiny.sources(), device="cpu", **arguments) as built:
        texts, found = accepted(built, "What is 2?")
        if arguments.get("step_delimiters") == ["\n", "b"]:
            texts = [text.removesuffix("b") if text.endswith("b") else text for text in texts]
        texts = [text.removesuffix(delimiter) for text in texts]
        wanted = rewards_by_hand(built, "What is 2?", texts, prompt, separator)
    assert found == pytest.approx(wanted, abs=1e-5) and len(found) > 1


def test_the_two_class_family_keeps_its_token(tmp_path: Path) -> None:
    made = make_tiny_models(tmp_path, two_class=True)
    with Engine(**made.sources(), device="cpu", step_delimiters="\n") as built:
        prm = built.parts.models.prm
        assert prm is not None
        [separator] = prm.format.separator_ids
        assert prm.format.encoder.id_to_token(separator) == "<extra_0>"


def test_the_log_says_how_the_prm_is_read(
    tiny: TinyModels, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = {"prm": {"max_position_embeddings": 100}}
    with (
        caplog.at_level(logging.INFO, "rsd_engine"),
        Engine(**tiny.sources(), device="cpu", prm_format=OWN, hf_overrides=overrides),
    ):
        pass
    for line in (
        "prm: read as mine (Skywork-o1-Open-PRM), with rewards from 0 to 1 and a threshold of "
        "0.4 by default; '$\\n' follows every step",
        "policy: threshold 0.4, the default of mine (Skywork-o1-Open-PRM)",
        "prm: its context holds 100 tokens, the writers' 512; an output ends where it is full, "
        "unless its request says otherwise (prm_overflow)",
    ):
        assert line in caplog.text


BAD: list[tuple[dict[str, Any], str]] = [
    ({"prm_format": "Skywerk"}, "prm_format='Skywerk' is not known; one of .*skywork-o1-open-prm"),
    ({"prm_format": "RLHFlow-PRM"}, "prm: model .* is a Qwen2ForPrmModel, not one of RLHFlow-PRM"),
    ({"prm_format": 3}, "prm_format must be a family's name, a PrmTemplate, a dict .* got 3"),
    ({"prm_format": {"prompt": "{question}"}}, "prm_format must have 'prompt' and 'separator'"),
    ({"prm_format": {"prompt": "{question}", "separator": "x", "y": 1}}, "may have"),
    ({"prm_format": replace(OWN, family="none")}, "prm_format='none' is not known; one of"),
    ({"prm_separator": ""}, "prm_separator is empty"),
    ({"prm_separator": 7}, "prm_separator must be text, got 7"),
    ({"prm": None, "draft": None, "prm_format": OWN}, "prm_format is given and no prm"),
    ({"prm": None, "draft": None, "prm_separator": "x"}, "prm_separator is given and no prm"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[m[:30] for _, m in BAD])
def test_what_is_not_allowed(tiny: TinyModels, arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {**tiny.sources(), "device": "cpu", **arguments}
    with pytest.raises(ValueError, match=message) as caught:
        Engine(**given)
    assert "\n" not in str(caught.value)


def test_the_command_line_and_the_config_file(tmp_path: Path) -> None:
    path = tmp_path / "rsd.toml"
    path.write_text(
        '[engine]\nprm = "p"\ntarget = "t"\nprm_separator = "\\n"\n'
        '[engine.prm_format]\nprompt = "{question}"\nseparator = "x"\n[sampling]\n'
        'prm_overflow = "target"\n'
    )
    config = read_config(path)
    assert config.engine["prm_format"] == {"prompt": "{question}", "separator": "x"}
    assert config.engine["prm_separator"] == "\n"
    assert config.sampling == {"prm_overflow": "target"}
    given = GenerateOptions(prm_format="TRL-PRM", prm_separator="\\n\\n")
    found = engine_arguments(given, config)
    assert (found["prm_format"], found["prm_separator"]) == ("TRL-PRM", "\n\n")
    own = GenerateOptions(prm_format='{"prompt": "Q {question}", "separator": "y"}')
    assert engine_arguments(own, config)["prm_format"] == {
        "prompt": "Q {question}", "separator": "y",
    }  # fmt: skip
