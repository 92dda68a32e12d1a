"""The demo family with a target whose ids are shuffled: the same model, in another vocabulary."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from rsd_engine import Engine, SamplingParams, Threshold
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import generate as make_problems
from tests.engine.oracles.test_naive import assert_same, engine_steps
from tests.engine.oracles.two_vocabularies import Asked, Naive, TwoVocabularies

POLICY = Threshold(0.7)
MAX_TOKENS = 160


def shuffled(source: Path, made: Path) -> Path:
    """A copy with other ids for all tokens."""
    shutil.copytree(source, made)
    tokenizer = json.loads((made / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    count = len(vocab)
    new = list(range(count))
    random.Random(0).shuffle(new)
    tokenizer["model"]["vocab"] = {token: new[i] for token, i in vocab.items()}
    for token in tokenizer["added_tokens"]:
        token["id"] = new[token["id"]]
    (made / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((made / name).read_text())
        ids = {key: new[value] for key, value in settings.items() if key.endswith("_token_id")}
        (made / name).write_text(json.dumps(settings | ids))
    weights = load_file(made / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in weights:
            moved = weights[name].clone()
            moved[new] = weights[name][:count]
            weights[name] = moved
    save_file(weights, str(made / "model.safetensors"), metadata={"format": "pt"})
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    try:
        found = {role: checkpoint_dir(role) for role in ("draft", "target", "prm")}
    except FileNotFoundError as error:
        pytest.skip(f"the demo checkpoints are not here: {error}")
    made = tmp_path_factory.mktemp("shuffled") / "target"
    return found | {"target": shuffled(found["target"], made), "plain": found["target"]}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_the_demo_family(folders: dict[str, Path], count: int) -> None:
    questions = [problem.question for problem in make_problems(11, "test", count)]
    chats = [[{"role": "user", "content": question}] for question in questions]
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, seed=5, policy=POLICY)
    draft, prm = folders["draft"], folders["prm"]
    with Engine(draft, folders["target"], prm, dtype="float32", device="cpu") as engine:
        assert engine.parts.models.separate
        results = engine.chat(chats, params, use_tqdm=False)
    with Engine(draft, folders["plain"], prm, dtype="float32", device="cpu") as engine:
        assert not engine.parts.models.separate
        wanted = engine.chat(chats, params, use_tqdm=False)
    rejections = 0
    for one, other in zip(results, wanted, strict=True):
        assert_same(engine_steps(one), engine_steps(other))
        rejections += sum(step.rejected is not None for step in one.outputs[0].steps)
    assert rejections >= count / 3
    two = TwoVocabularies.load(draft, folders["target"], prm)
    for question, chat, result in list(zip(questions, chats, results, strict=True))[
        : max(2, count // 6)
    ]:
        prompts = {writer: _prompt(two, writer, chat) for writer in ("draft", "target")}
        asked = Asked(prompts, question, POLICY, MAX_TOKENS, capacity=1024)
        assert_same(engine_steps(result), Naive(two, asked).run().steps)


def _prompt(two: TwoVocabularies, writer: str, chat: list[dict[str, str]]) -> list[int]:
    tokenizer = two.tokenizer(writer)
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(str(text), add_special_tokens=False)
