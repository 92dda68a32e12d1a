"""A real model, SmolLM2-135M-Instruct: greedy tokens and logits equal transformers' in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gguf")

from rsd_engine.models.checkpoints.open import load_tokenizer, open_checkpoint
from rsd_engine.models.loader import load_language_model
from tests.models.driver import Driver
from tests.models.gguf_files import find_smollm2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

NUM_TOKENS = 24
PROMPTS = [
    "What is the capital of France?",
    "Say hello in Spanish.",
    "Name three colours.",
    "What is 7 plus 5?",
    "Write one sentence about the sea.",
    "Who wrote Hamlet?",
    "List two animals that can fly.",
    "What do bees make?",
    "Why is the sky blue?",
    "Give me a word that rhymes with cat.",
    "How many days are in a week?",
    "Translate 'good morning' to French.",
    "What is the opposite of hot?",
    "Finish the line: roses are red,",
    "What is water made of?",
    "Name a planet with rings.",
    "What is 12 times 12?",
    "Describe a tree in five words.",
    "Which month comes after May?",
    "Is the number 9 even or odd?",
]


@pytest.fixture(scope="module")
def path() -> Path:
    return find_smollm2()


def test_greedy_tokens_and_logits(path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate only")
    from transformers import AutoModelForCausalLM

    checkpoint = open_checkpoint(path)
    tokenizer = load_tokenizer(checkpoint)
    rows = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
        for prompt in PROMPTS
    ]
    starts = [len(row) for row in rows]
    model = load_language_model(checkpoint, max_rows=64)
    driver = Driver(model, tokens_per_page=16, num_slots=len(rows), max_tokens=128)
    logits = [driver.run((slot, row)) for slot, row in enumerate(rows)]
    steps = [torch.cat(logits)]
    for _ in range(NUM_TOKENS - 1):
        chosen = steps[-1].argmax(-1).tolist()
        for row, token in zip(rows, chosen, strict=True):
            row.append(token)
        steps.append(driver.run(*((slot, [token]) for slot, token in enumerate(chosen))))
    theirs_fp32 = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    for slot, row in enumerate(rows):
        with torch.no_grad():
            wanted = theirs_fp32(torch.tensor([row])).logits[0, starts[slot] - 1 :]
        ours = torch.stack([step[slot] for step in steps])
        assert torch.equal(ours.argmax(-1), wanted.argmax(-1)), PROMPTS[slot]
        assert (ours - wanted).abs().max() < 1e-3


def test_tokenizer(path: Path) -> None:
    """transformers builds the same one, but for its missing rule on digits."""
    from transformers import AutoTokenizer

    ours = load_tokenizer(open_checkpoint(path))
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    chat = [{"role": "user", "content": "What is the capital of France?\n\nThink   first."}]
    options: dict[str, Any] = {"add_generation_prompt": True, "return_dict": False}
    ids = ours.apply_chat_template(chat, **options)
    assert ids == theirs.apply_chat_template(chat, **options)
    for text in (*(p for p in PROMPTS if not any(c.isdigit() for c in p)), "é 漢字 🙂", " a\n\n b"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ours.encode(text)) == text
    assert len(ours.encode("1234")) == 4
    assert (ours.eos_token_id, ours.bos_token_id) == (2, 1)
    assert len(ours) == 49152
