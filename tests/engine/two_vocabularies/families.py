"""Tiny models whose draft has another tokenizer, and a comparison with the naive loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from rsd_engine import Engine, SamplingParams, Step
from tests.engine.harness.runs import PROMPTS, all_pages_free, generate
from tests.engine.oracles.test_naive import assert_same, engine_steps
from tests.engine.oracles.two_vocabularies import Asked, Naive, TwoVocabularies
from tests.tiny_models import TinyModels, other_tokenizer, third_tokenizer

FAMILIES: dict[str, tuple[Tokenizer, Tokenizer | None]] = {  # tokenizers of draft and PRM
    "PRM of the draft": (other_tokenizer(), other_tokenizer()),
    "PRM of the target": (third_tokenizer(), None),
    "PRM of nobody": (third_tokenizer(), other_tokenizer()),
}


@dataclass(frozen=True)
class Family:
    """Tiny models whose draft has another tokenizer, an engine of them, and the oracle's copy."""

    folders: TinyModels
    engine: Engine
    two: TwoVocabularies

    def check(
        self, params: SamplingParams, prompts: Sequence[str] = PROMPTS, capacity: int = 512
    ) -> list[Naive]:
        """Runs prompts in the engine and in the naive loop, and compares them."""
        assert params.policy is not None and params.seed is not None and params.max_tokens
        results, naive = generate(self.engine, prompts, params), []
        for prompt, result in zip(prompts, results, strict=True):
            ids = {w: self.two.tokenizer(w).encode(prompt) for w in ("draft", "target")}
            asked = Asked(
                ids, prompt, params.policy, params.max_tokens, params.seed,
                params.temperature, params.min_tokens, capacity,
            )  # fmt: skip
            theirs = Naive(self.two, asked).run()
            assert_same(engine_steps(result), theirs.steps)
            assert result.prompt_token_ids == tuple(ids["target"])
            assert self._ids(result.outputs[0].steps, asked) == theirs.contexts["target"]
            naive.append(theirs)
        assert all_pages_free(self.engine)
        return naive

    def _ids(self, steps: tuple[Step, ...], asked: Asked) -> list[int]:
        """The target's context, from the steps of a result."""
        ids = list(asked.prompts["target"])
        for step in steps:
            if step.source == "target":
                ids += step.token_ids
            else:
                ids += self.two.models.tokenizer.encode(step.text, add_special_tokens=False)
        return ids
