"""What ends a text: every place that names it counts, and special tokens are stop strings too."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from rsd_engine import Engine, RequestOutput, SamplingParams
from tests.engine.harness.runs import PROMPTS, generate
from tests.tiny_models import BOS, EOS, TinyModels

GREEDY = SamplingParams(temperature=0.0, max_tokens=60)
ABSENT = object()


def copy(source: Path, folder: Path, config: object, generation: object, tokenizer: object) -> Path:
    """A copy of a checkpoint that names its ends of text so."""
    shutil.copytree(source, folder)
    places = (
        ("config.json", "eos_token_id", config),
        ("generation_config.json", "eos_token_id", generation),
        ("tokenizer_config.json", "eos_token", tokenizer),
    )
    for name, key, value in places:
        content = json.loads((folder / name).read_text())
        content.pop(key, None)
        if value is not ABSENT:
            content[key] = value
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("config", "generation", "tokenizer", "wanted"),
    [
        (7, [8, 9], BOS, {0, 7, 8, 9}),
        ([7, 8], ABSENT, ABSENT, {7, 8}),
        (None, 8, EOS, {1, 8}),
        ([7], None, None, {7}),
        (ABSENT, [], EOS, {1}),
        (ABSENT, ABSENT, None, set()),
        ([7, 100_000], 7, None, {7}),
    ],
)
def test_ends_of_text_are_the_union(
    tiny: TinyModels,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    config: object,
    generation: object,
    tokenizer: object,
    wanted: set[int],
) -> None:
    folder = copy(tiny.draft, tmp_path / "model", config, generation, tokenizer)
    with caplog.at_level(logging.INFO, "rsd_engine"), Engine(target=folder, device="cpu") as own:
        assert own.parts.models.eos_ids == wanted
        names = [str(own.get_tokenizer().convert_ids_to_tokens(i)) for i in sorted(wanted)]
    [said] = [r.message for r in caplog.records if "end of text: " in r.message and r.levelno == 20]
    for token, name in zip(sorted(wanted), names, strict=True):
        assert f"{token} {name!r}" in said
    assert ("no ids" in said) == (not wanted)
    assert ("ids [100000] are ignored" in caplog.text) == (100_000 in _listed(config))


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("place", ["config", "generation"])
def test_a_turn_ends_where_one_file_names_it(tiny: TinyModels, tmp_path: Path, place: str) -> None:
    """The other file names the end of text only, as those of fine-tunes do."""
    with Engine(target=tiny.target, device="cpu") as own:
        [plain] = generate(own, [PROMPTS[0]], GREEDY)
    ids = plain.outputs[0].token_ids
    turn = next(i for i in ids[5:] if ids.index(i) >= 5)  # its first place is not the first words
    named = {"config": 1, "generation": [1], place: [1, turn]}
    folder = copy(tiny.target, tmp_path / "model", named["config"], named["generation"], EOS)
    with Engine(target=folder, device="cpu") as own:
        [result] = generate(own, [PROMPTS[0]], GREEDY)
    output = result.outputs[0]
    assert output.token_ids == ids[: ids.index(turn) + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", None)


@pytest.fixture(scope="module")
def no_eos(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A writer whose `</s>` is a special token like others, and likely."""
    folder = tmp_path_factory.mktemp("no_eos") / "model"
    return Engine(target=copy(tiny.target, folder, None, None, None), device="cpu")


def ended_by_eos(engine: Engine, **options: Any) -> RequestOutput:
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=300, **options)
    [result] = generate(engine, [PROMPTS[1]], params)
    return result


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("include", [True, False])
def test_a_special_token_as_a_stop_string(no_eos: Engine, skip: bool, include: bool) -> None:
    plain = ended_by_eos(no_eos, skip_special_tokens=skip).outputs[0]
    assert plain.finish_reason == "length" and 1 in plain.token_ids
    result = ended_by_eos(
        no_eos, stop=["never", EOS], skip_special_tokens=skip, include_stop_str_in_output=include
    )
    output = result.outputs[0]
    assert output.token_ids == plain.token_ids[: plain.token_ids.index(1) + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", EOS)
    body = output.text.removesuffix(EOS) if include else output.text
    assert output.text == body + EOS * include
    assert EOS not in body and plain.text.startswith(body)


def test_a_stop_id_beyond_the_vocabulary(no_eos: Engine) -> None:
    count = no_eos.parts.models.num_ids
    message = rf"stop_token_ids must be in \[0, {count - 1}\], the vocabulary, got {count}"
    with pytest.raises(ValueError, match=message):
        ended_by_eos(no_eos, stop_token_ids=[1, count])
    ended_by_eos(no_eos, stop_token_ids=[1, count - 1])


def test_odd_sampling_defaults_are_a_warning(
    tiny: TinyModels, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy(tiny.target, tmp_path / "model", 1, 1, EOS)
    odd = {"temperature": -1.0, "top_p": 0, "top_k": "many", "min_p": None, "do_sample": True,
           "repetition_penalty": 1.2}  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(odd))
    with caplog.at_level(logging.WARNING, "rsd_engine"), Engine(target=folder, device="cpu") as own:
        assert own.get_default_sampling_params() == SamplingParams(repetition_penalty=1.2)
    for name in ("temperature", "top_p", "top_k"):
        assert f"generation_config.json: {name} must be" in caplog.text
