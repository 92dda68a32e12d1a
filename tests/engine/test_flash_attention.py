"""An engine whose attention is flash-attn's: pages of 256 tokens, the same tokens."""

from __future__ import annotations

import importlib.machinery
import logging
import sys

import pytest
import torch

from rsd_engine import Engine, SamplingParams, Threshold
from rsd_engine.models import decoder
from rsd_kernels.attention import flash as flash_attention
from rsd_kernels.model_ops import TWINS
from tests.engine.support import PROMPTS, decisions, generate
from tests.kernels.fake_flash_attn import HALF, fake_library
from tests.tiny_models import TinyModels


def test_the_same_tokens(
    engine: Engine,
    tiny: TinyModels,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    params = [SamplingParams(temperature=0.0, max_tokens=40), SamplingParams(seed=3, max_tokens=40)]
    prompts = list(PROMPTS[:2])
    wanted = [decisions(result) for result in generate(engine, prompts, params)]
    library = fake_library((*HALF, torch.float32), head_multiple=4)
    library.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
    monkeypatch.setitem(sys.modules, "flash_attn", library)
    monkeypatch.setattr(decoder, "model_ops", lambda _, scheduled: flash_attention.over(TWINS))
    with (
        caplog.at_level(logging.INFO, "rsd_engine"),
        Engine(**tiny.sources(), policy=Threshold(0.5), max_num_seqs=2, device="cpu") as ours,
    ):
        assert "attention: flash-attn of unknown version, else PyTorch" in caplog.text
        per_page = ours.parts.core.loop.tokens_per_page
        assert all(tokens > 0 and tokens % 256 == 0 for tokens in per_page)
        found = [decisions(result) for result in generate(ours, prompts, params)]
    assert found == wanted
    assert {"varlen", "with_kvcache"} <= set(library.calls)
