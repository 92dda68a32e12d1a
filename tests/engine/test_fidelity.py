"""One model alone, without steps, greedy: the tokens that transformers generates."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rsd_engine import Engine, RequestOutput, SamplingParams
from rsd_kernels.state.enums import Role
from tests.engine.harness.runs import PROMPTS, Fresh, generate
from tests.engine.oracles.ties import TIE
from tests.models.checkpoints import ARCHITECTURES, make_model, save, to_old_spelling
from tests.tiny_models import TinyModels, tiny_tokenizer, write_tokenizer

SHORT_PROMPTS = [
    "The capital of France is", "Once upon a time", "2 + 2 =", "def add(a, b):", "Water boils at",
    "My favourite colour", "The moon", "List three fruits:", "In 1969,", "Dear Sir,",
    "To be or not", "Roses are red,", "A triangle has", "The opposite of hot", "import numpy",
    "Breaking news:", "Step 1:", "Q: What is 7 * 8?", "The largest ocean", "Good morning",
]  # fmt: skip


def transformers_tokens(model: Any, ids: list[int], count: int, eos: list[int]) -> list[int]:
    prompt = torch.tensor([ids])
    with torch.no_grad():
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=0,
        )
    return output[0, len(ids) :].tolist()


def same_or_tie(engine: Engine, result: RequestOutput, wanted: list[int]) -> bool:
    """Whether the tokens agree up to a tie of the two best logits."""
    found = list(result.outputs[0].token_ids)
    if found == wanted:
        return True
    same = next(i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b)
    [role] = engine.parts.models.writers
    row = [*result.prompt_token_ids, *wanted[:same]]
    best = Fresh(engine).logits(role, row).topk(2).values
    return float(best[0] - best[1]) < TIE


@pytest.mark.parametrize("role", ["draft", "target"])
def test_tiny_models(tiny: TinyModels, role: str) -> None:
    folder = getattr(tiny, role)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    num_ids = len(AutoTokenizer.from_pretrained(folder))
    # transformers would sample the padded rows, which stand far above the others.
    model.lm_head.weight.data[num_ids:] = -model.lm_head.weight.data[num_ids:]
    params = SamplingParams(temperature=0.0, max_tokens=64)
    with Engine(**{role: folder}, step_delimiters=None, device="cpu") as engine:
        results = generate(engine, PROMPTS, params)
        for result in results:
            ids = list(result.prompt_token_ids)
            wanted = transformers_tokens(model, ids, 64, eos=[1])
            assert same_or_tie(engine, result, wanted)
            assert len(result.outputs[0].steps) == 1
    assert len({result.outputs[0].token_ids for result in results}) > 3


@pytest.mark.parametrize("old_spelling", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_architecture(name: str, old_spelling: bool, tmp_path: Path) -> None:
    """Past sliding windows and the length that rope scaling begins at; prompt and output mixed."""
    tokenizer = tiny_tokenizer()
    seed = 5 if name == "llama-bias" else 0  # with others its biases drown the text
    size = tokenizer.get_vocab_size()
    model = make_model(name, seed, vocab_size=size, bos_token_id=0, eos_token_id=1)
    folder = save(model, tmp_path)
    write_tokenizer(folder, tokenizer, model.config.max_position_embeddings)
    if old_spelling:
        to_old_spelling(folder)
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    with Engine(target=folder, step_delimiters=None, max_num_seqs=4, device="cpu") as engine:
        found = generate(engine, [*PROMPTS[:3], PROMPTS[3][:44], *PROMPTS[4:]], params)
        for result in found:
            wanted = transformers_tokens(model, list(result.prompt_token_ids), 40, eos=[])
            assert same_or_tie(engine, result, wanted)
    assert len({result.outputs[0].token_ids for result in found}) > 3


def test_steps_change_nothing_in_what_one_model_writes(tiny: TinyModels) -> None:
    """But for tokens that run past a delimiter, which are cut."""
    params = SamplingParams(temperature=0.0, max_tokens=64)
    with (
        Engine(target=tiny.target, step_delimiters=None, device="cpu") as plain,
        Engine(target=tiny.target, step_delimiters="\n\n", device="cpu") as stepped,
    ):
        three = plain.get_tokenizer().convert_tokens_to_ids("ĊĊĊ")
        compared = 0
        for one, two in zip(
            generate(plain, PROMPTS, params), generate(stepped, PROMPTS, params), strict=True
        ):
            if three not in one.outputs[0].token_ids:
                assert one.outputs[0].token_ids == two.outputs[0].token_ids
                compared += len(two.outputs[0].steps) > 1
    assert compared > 0


@pytest.fixture(scope="module")
def smollm2() -> Path:
    pytest.importorskip("gguf")
    from tests.models.gguf_files import find_smollm2

    return find_smollm2()


def demo_questions(count: int) -> list[str]:
    from rsd_engine.demo.problems import generate as make_problems

    return [problem.question for problem in make_problems(12, "test", count)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smollm2(smollm2: Path) -> None:
    """Twenty short prompts and twenty word problems, 24 to 64 tokens each."""
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate only")
    rng = random.Random(1)
    asked = [(p, rng.randint(24, 64)) for p in [*SHORT_PROMPTS, *demo_questions(20)]]
    check_smollm2(smollm2, asked)


def check_smollm2(path: Path, asked: list[tuple[str, int]]) -> None:
    """Greedy tokens and the logits after them, from the GGUF file and from safetensors."""
    from bench.compare.smollm2 import checkpoint_folder

    file = {"gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **file).eval()
    params = [SamplingParams(temperature=0.0, max_tokens=count) for _, count in asked]
    expected: dict[tuple[int, ...], list[int]] = {}
    for source in (path, checkpoint_folder(path)):
        with Engine(
            target=source, step_delimiters=None, max_num_seqs=8, max_model_len=256,
            dtype="float32", device="cpu",
        ) as engine:  # fmt: skip
            results = generate(engine, [prompt for prompt, _ in asked], params)
            eos = sorted(engine.parts.models.eos_ids)
            for result, (_, count) in zip(results, asked, strict=True):
                ids = result.prompt_token_ids
                if ids not in expected:
                    expected[ids] = transformers_tokens(model, list(ids), count, eos)
                assert same_or_tie(engine, result, expected[ids])
            row = [*results[0].prompt_token_ids, *results[0].outputs[0].token_ids]
            with torch.no_grad():
                wanted = model(torch.tensor([row])).logits[0, -1]
            assert (Fresh(engine).logits(Role.TARGET, row) - wanted).abs().max() < 1e-3
    assert len(expected) == len(asked)
