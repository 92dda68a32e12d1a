"""Writes trained checkpoints as Hugging Face folders in bfloat16, and reads them back."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from examples.demo_family.recipes import RewardModel
from examples.demo_family.sampling import MAX_SOLUTION_TOKENS
from examples.demo_family.tokenizer import save_tokenizer


def export_language_model(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Writes a draft or target that AutoModelForCausalLM can load."""
    model.bfloat16()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=MAX_SOLUTION_TOKENS,
    )
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    save_tokenizer(tokenizer, folder)


def export_reward_model(
    model: RewardModel, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Writes the reward model in the format of Skywork-o1-Open-PRM, but for its model type.

    transformers gives every tokenizer of type qwen2 the words of Qwen2, whatever its
    tokenizer.json says, and this one has its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {n: t.detach().to(torch.bfloat16).contiguous() for n, t in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    config = model.config.to_dict() | {
        "architectures": ["Qwen2ForPrmModel"],
        "model_type": "qwen2_prm",
        "dtype": "bfloat16",
    }
    config.pop("_attn_implementation", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    generation = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    save_tokenizer(tokenizer, folder)
