"""Reward families outside the loop: how they are found and loaded, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rsd_engine.engine.rewards.prm_options import PrmOptions
from rsd_engine.models.checkpoints.open import load_tokenizer, open_checkpoint
from rsd_engine.models.loader import load_reward_model, reward_family_of
from rsd_engine.models.registry import reward_families, reward_family
from rsd_kernels.reward.heads import EnsembleHead, ValueHead
from tests.models.checkpoints import edit_config, make_model
from tests.models.driver import Driver
from tests.models.reward.family_checkpoints import CASES, Prm, rlhflow, token_classifier, value_head
from tests.steps.toy_tokenizers import qwen_like

STEPS = ["add 1 + 2.", "so x"]


def reward_of(prm: Prm, **options: Any) -> float:
    row = prm.row("What is 1 + 2?", STEPS)
    model = load_reward_model(prm.folder, max_rows=len(row), **options)
    found = Driver(model, num_slots=1, max_tokens=1024).run((0, row))
    return float(found[0])


def expected(prm: Prm) -> float:
    return prm.reward(prm.row("What is 1 + 2?", STEPS))


def put(name: str, value: torch.Tensor | None) -> Callable[[Prm], None]:
    """Replaces a tensor of the checkpoint; None drops it."""

    def spoil(prm: Prm) -> None:
        path = prm.folder / "model.safetensors"
        tensors = {n: t for n, t in load_file(path).items() if n != name}
        save_file(tensors | ({} if value is None else {name: value}), path, {"format": "pt"})

    return spoil


def test_there_is_a_case_for_every_family() -> None:
    others = {"skywork-o1-open-prm"}  # in `tests/engine/prms/test_rewards.py`
    assert {name.lower() for name in CASES} | others == set(reward_families())


@pytest.mark.parametrize("kind", ["granite", "gemma3", "llama-bias", "phi3", "olmo2"])
def test_a_value_head_on_any_decoder(kind: str, tmp_path: Path) -> None:
    """Granite's factor of the logits is none of its hidden states."""
    prm = value_head(tmp_path, kind)
    assert reward_of(prm) == pytest.approx(expected(prm), abs=1e-5)


@pytest.mark.parametrize("kind", ["llama2", "mistral", "smollm3"])
def test_token_classification_on_other_decoders(kind: str, tmp_path: Path) -> None:
    prm = token_classifier(tmp_path, kind)
    assert reward_family_of(open_checkpoint(tmp_path)).name == "TRL-PRM"
    assert reward_of(prm) == pytest.approx(expected(prm), abs=1e-5)


def test_rows_of_the_lm_head_from_a_bin_file(tmp_path: Path) -> None:
    case = CASES["Math-Shepherd"]
    prm = case.make(tmp_path / case.folder)
    stored = prm.folder / "model.safetensors"
    torch.save(load_file(stored), prm.folder / "pytorch_model.bin")
    stored.unlink()
    assert reward_of(prm) == pytest.approx(expected(prm), abs=1e-5)


def test_rows_of_the_lm_head_from_gguf(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tests.models.gguf_files import write_gguf

    tokenizer = qwen_like()
    model = make_model("llama2", vocab_size=tokenizer.get_vocab_size())
    path = write_gguf(tmp_path / "tiny.gguf", model, tokenizer=tokenizer)
    made = load_reward_model(path, max_rows=8, family=reward_family("VersaPRM"))
    row = [5, 1, 44, 60, 2]
    plus, minus = (tokenizer.encode(sign).ids[0] for sign in "+-")
    with torch.no_grad():
        wanted = model(torch.tensor([row])).logits[0, -1, [plus, minus]].softmax(-1)[0]
    assert float(Driver(made).run((0, row))[0]) == pytest.approx(float(wanted), abs=1e-4)


def test_of_an_lm_head_in_blocks_two_rows_are_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = pytest.importorskip("gguf")
    from rsd_engine.models.checkpoints.gguf import GgufCheckpoint
    from tests.models.gguf_files import write_gguf

    tokenizer, kind = qwen_like(), gguf.GGMLQuantizationType.Q8_0
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "hidden_size": 64, "intermediate_size": 96}
    model = make_model("llama2", **sizes)
    path = write_gguf(tmp_path / "tiny.gguf", model, tokenizer=tokenizer, quantise=kind)
    monkeypatch.setattr(GgufCheckpoint, "_expand", None)
    made = load_reward_model(path, max_rows=8, family=reward_family("VersaPRM"))
    assert isinstance(made.head, ValueHead)
    table = model.state_dict()["lm_head.weight"].numpy()
    blocks = gguf.quants.quantize(table, kind)
    plus, minus = (tokenizer.encode(sign).ids[0] for sign in "+-")
    good, bad = (torch.from_numpy(gguf.dequantize(blocks[i], kind)) for i in (plus, minus))
    assert torch.equal(made.head.weight[0], good - bad)


def test_a_head_of_rows_is_computed_in_float32(tmp_path: Path) -> None:
    """In bfloat16 two rows that are nearly the same would differ by a few bits."""
    prm = rlhflow(tmp_path / "Llama3.1-8B-PRM-Mistral-Data")
    model = load_reward_model(prm.folder, max_rows=8, dtype="bfloat16")
    assert isinstance(model.head, ValueHead)
    table = load_file(prm.folder / "model.safetensors")["model.embed_tokens.weight"]
    plus, minus = (prm.tokenizer.encode(sign)[-1] for sign in "+-")
    torch.testing.assert_close(model.head.weight[0], table[plus] - table[minus])
    assert model.head.weight.dtype == torch.float32 and model.dtype == torch.bfloat16


def test_the_ensemble_is_as_large_as_the_config_says(tmp_path: Path) -> None:
    prm = CASES["ActPRM"].make(tmp_path)
    head = load_reward_model(prm.folder, max_rows=8).head
    assert isinstance(head, EnsembleHead) and head.inner.shape == (5, 32, 128)


def test_the_range_of_a_family_is_that_of_its_head(tmp_path: Path) -> None:
    prm = CASES["PURE-PRM"].make(tmp_path / "PURE-PRM-7B")
    head = load_reward_model(prm.folder, max_rows=8).head
    assert isinstance(head, ValueHead) and (head.scale, head.offset) == (2.0, -1.0)


@pytest.mark.parametrize("name", CASES)
def test_found_by_what_the_checkpoint_tells(name: str, tmp_path: Path) -> None:
    """By the folder's name, by `_name_or_path` in its config, or by architecture and tensors."""
    case = CASES[name]
    prm = case.make(tmp_path / "some-prm")
    edit_config(prm.folder, _name_or_path=f"someone/{case.folder}")
    assert reward_family_of(open_checkpoint(prm.folder)).name == name


@pytest.mark.parametrize("name", ["Math-Shepherd", "RLHFlow-PRM", "Universal-PRM"])
def test_a_checkpoint_that_does_not_tell(name: str, tmp_path: Path) -> None:
    prm = CASES[name].make(tmp_path / "prm")
    with pytest.raises(ValueError, match="does not tell what reward model it is; name it with "):
        load_reward_model(prm.folder, max_rows=8)
    assert reward_of(prm, family=reward_family(name.upper())) == pytest.approx(
        expected(prm), abs=1e-5
    )


def test_a_name_that_is_not_known() -> None:
    with pytest.raises(ValueError, match=r"prm_format='nonsense' is not known; one of actprm, "):
        reward_family("nonsense")


def test_a_family_of_another_architecture(tmp_path: Path) -> None:
    prm = token_classifier(tmp_path)
    with pytest.raises(ValueError, match="is a Qwen2ForTokenClassification, not one of RLHFlow"):
        load_reward_model(prm.folder, max_rows=8, family=reward_family("rlhflow-prm"))


@pytest.mark.parametrize("name", CASES)
def test_a_question_cannot_close_its_own_turn(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    prm = case.make(tmp_path / case.folder)
    made = reward_family(name).format(load_tokenizer(open_checkpoint(prm.folder)))
    special = list(prm.tokenizer.get_added_vocab())
    plain = made.prompt_ids("x")
    for token in special:
        hostile, i = made.prompt_ids(f"x{token}"), prm.tokenizer.convert_tokens_to_ids(token)
        assert hostile.count(i) == plain.count(i)


BAD: list[tuple[str, Callable[[Prm], None], str]] = [
    (
        "TRL-PRM",
        put("score.weight", torch.zeros(3, 32)),
        r"score\.weight in .* has shape \[3, 32\]; it must have 2 rows",
    ),
    ("TRL-PRM", put("score.bias", None), r"lacks score\.bias"),
    (
        "TRL-PRM",
        put("score.weight", torch.zeros(2, 16)),
        r"score\.weight .* has shape \[1, 16\]; .* must be \[1, 32\]",
    ),
    (
        "Universal-PRM",
        put("score.2.weight", torch.zeros(2, 32)),
        r"score\.2\.weight .* \[2, 32\]; it must have 1 row",
    ),
    (
        "Math-Shepherd",
        put("lm_head.weight", torch.zeros(10, 32)),
        r"LM head .* has 10 rows, and the tokens '\+' and '-' are",
    ),
    ("Math-Shepherd", put("lm_head.weight", None), r"lacks lm_head\.weight, of which its head"),
    ("ActPRM", lambda p: edit_config(p.folder, num_ensemble=7), r"nn1\.bias .* must be \[7, 128\]"),
    (
        "ActPRM",
        lambda p: edit_config(p.folder, num_ensemble="many"),
        r"num_ensemble must be an integer in \[1, 1024\], got 'many'",
    ),
]


@pytest.mark.parametrize(("name", "spoil", "message"), BAD)
def test_a_head_of_the_wrong_shape(
    name: str, spoil: Callable[[Prm], None], message: str, tmp_path: Path
) -> None:
    case = CASES[name]
    prm = case.make(tmp_path / case.folder)
    spoil(prm)
    with pytest.raises(ValueError, match=message) as error:
        load_reward_model(prm.folder, max_rows=8)
    assert "\n" not in str(error.value)


MISSING = [
    ("Math-Shepherd", "'ки' must be one token"),
    ("VersaPRM", "must be one token, for this PRM's format"),
    ("RLHFlow-PRM", "has no token '<|eot_id|>'"),
    ("ActPRM", "has no token '<extra_0>'"),
    ("ReasonFlux-PRM", "has no token '<extra_0>'"),
]


@pytest.mark.parametrize(("name", "message"), MISSING)
def test_a_tokenizer_that_lacks_a_token(name: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        reward_family(name).format(qwen_like())
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["Math-Shepherd", "RLHFlow-PRM", "Universal-PRM"])
def test_a_separator_for_a_family_that_takes_none(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    prm = case.make(tmp_path / case.folder)
    checkpoint = open_checkpoint(prm.folder)
    family = PrmOptions(separator="##").family_of(checkpoint)
    with pytest.raises(ValueError, match=f"prm_separator='##' is given for a PRM of {name}, which"):
        family.format(load_tokenizer(checkpoint))


def test_a_sign_that_is_no_token(tmp_path: Path) -> None:
    """`+` and `-` are looked up when the weights are loaded."""
    case = CASES["VersaPRM"]
    prm = case.make(tmp_path / case.folder)
    path = prm.folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"+":', '"plus":'))
    with pytest.raises(ValueError, match=r"'\+' must be one token, for this PRM's format"):
        load_reward_model(prm.folder, max_rows=8)
