"""Tiny look-alikes of DeepSeek-R1-Distill: a Qwen2 or Llama with DeepSeek's tokenizer and template.

The template opens the thinking tag itself and writes bos; the thinking tags are added tokens that
belong to the text; config.json and generation_config.json name other ids for bos.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from rsd_engine import Engine, SamplingParams
from tests.models.checkpoints import make_model, save

_BAR = "\uff5c"  # DeepSeek's special tokens have a wide one


def _wide(text: str) -> str:
    return text.replace("|", _BAR)


BOS, END = _wide("<|begin▁of▁sentence|>"), _wide("<|end▁of▁sentence|>")
USER, ASSISTANT = _wide("<|User|>"), _wide("<|Assistant|>")
TEMPLATE = _wide(
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '<|User|>' + m['content'] }}{% elif m['role'] == 'assistant' %}"
    "{% set content = m['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<|Assistant|>' + content + '<|end▁of▁sentence|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
)
QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]
_SPLIT = r"\p{N}{1,3}|[一-龥]+|[!-/:-~]?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"


def _tokenizer() -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for text, special in ((END, True), (USER, False), (ASSISTANT, False), (BOS, True)):
        tokenizer.add_tokens([AddedToken(text, special=special, normalized=False)])
    for text in ("<think>", "</think>"):
        tokenizer.add_tokens([AddedToken(text, special=False, normalized=False)])
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, bos)]
    )
    return tokenizer


@pytest.fixture(scope="module", params=["qwen2-untied", "llama2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    tokenizer = _tokenizer()
    end = tokenizer.token_to_id(END)
    model = make_model(
        request.param,
        vocab_size=tokenizer.get_vocab_size() + 10,
        bos_token_id=end,  # as in their config.json
        eos_token_id=end,
        max_position_embeddings=256,
    )
    with torch.no_grad():
        model.lm_head.weight[tokenizer.get_vocab_size() :] = 0.0  # padding is never likely
    save(model, path)
    tokenizer.save(str(path / "tokenizer.json"))
    named = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False}
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": {**named, "content": BOS},
        "eos_token": {**named, "content": END},
        "pad_token": {**named, "content": END},
        "unk_token": None,
        "tokenizer_class": "LlamaTokenizerFast",
        "model_max_length": 256,
        "chat_template": TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    generation = {
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": end,
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
    }
    (path / "generation_config.json").write_text(json.dumps(generation))
    return path


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine(target=folder, device="cpu", max_num_seqs=2) as built:
        yield built


def test_prompts_begin_with_one_bos_and_open_the_thinking(engine: Engine) -> None:
    ids = _tokenizer()
    bos, think = ids.token_to_id(BOS), ids.token_to_id("<think>")
    params = SamplingParams(temperature=0.0, max_tokens=1)
    [chat] = engine.chat(QUESTION, params, use_tqdm=False)
    assert chat.prompt_token_ids.count(bos) == 1 and chat.prompt_token_ids[0] == bos
    newline = ids.encode("\n", add_special_tokens=False).ids
    assert list(chat.prompt_token_ids[-1 - len(newline) :]) == [think, *newline]
    [raw] = engine.generate(["2 + 3"], params, use_tqdm=False)
    assert raw.prompt_token_ids[0] == bos


def test_the_ends_and_defaults_of_the_checkpoint(engine: Engine) -> None:
    assert engine.parts.models.eos_ids == {_tokenizer().token_to_id(END)}
    assert engine.get_default_sampling_params() == SamplingParams(temperature=0.6, top_p=0.95)


def test_thinking_tags_belong_to_the_text(engine: Engine) -> None:
    """They are added tokens, not special ones: in the text, and stop strings like others."""
    vocabulary, ids = engine.parts.models.main.vocabulary, _tokenizer()
    for tag in ("<think>", "</think>"):
        assert vocabulary.token_bytes.index(tag.encode()) == ids.token_to_id(tag)
    assert set(vocabulary.special_text.values()) == {BOS, END}


def test_tokens_equal_transformers(engine: Engine, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    params = SamplingParams(temperature=0.0, max_tokens=40)
    [result] = engine.chat(QUESTION, params, use_tqdm=False)
    prompt = torch.tensor([result.prompt_token_ids])
    wanted = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=40
    )
    assert list(result.outputs[0].token_ids) == wanted[0, prompt.shape[1] :].tolist()
