"""What is asked: samples of one prompt, the turns of a chat, and prompts that begin with examples.

Word problems of the demo family. All prompts are token ids, so that every program reads the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rsd_engine import Engine, RequestOutput, SamplingParams
from rsd_engine.demo.problems import Problem, generate
from rsd_engine.sampling_params import ModeName

Message = dict[str, str]


@dataclass(frozen=True)
class Prompt:
    """Token ids, and what the PRM reads in place of their text."""

    ids: tuple[int, ...]
    question: str


@dataclass(frozen=True)
class Scene:
    """Prompts and how they are asked.

    Attributes:
        rounds: prompts; those of a round are asked at once, when the round before has ended.
        samples: of every prompt.
        tokens: most of an output.
        ignore_eos: every output has as many.
    """

    name: str
    rounds: tuple[tuple[Prompt, ...], ...]
    samples: int
    tokens: int
    ignore_eos: bool = False

    def apart(self) -> Scene:
        """Every sample as a request of its own; the same when decoding is greedy."""
        rounds = tuple(
            tuple(prompt for prompt in prompts for _ in range(self.samples))
            for prompts in self.rounds
        )
        return replace(self, rounds=rounds, samples=1)


def play(engine: Engine, scene: Scene, mode: ModeName) -> list[RequestOutput]:
    """All results of a scene, by an engine that knows none of its prompts."""
    engine.reset_prefix_cache()
    params = SamplingParams(
        n=scene.samples, temperature=0.0, max_tokens=scene.tokens, seed=0, mode=mode,
        ignore_eos=scene.ignore_eos,
    )  # fmt: skip
    results = []
    for prompts in scene.rounds:
        given = [{"prompt_token_ids": [*p.ids], "question": p.question} for p in prompts]
        results += engine.generate(given, params, use_tqdm=False)
    return results


def sample_scene(engine: Engine, samples: int, shots: int, tokens: int) -> Scene:
    """Samples of one prompt."""
    [prompts] = few_shot_scene(engine, 1, shots, tokens).rounds
    return Scene("samples", (prompts,), samples, tokens)


def chat_scene(engine: Engine, mode: ModeName, turns: int, tokens: int) -> Scene:
    """A user who asks one short question after the other, and has read the answers."""
    messages: list[Message] = []
    rounds = []
    params = SamplingParams(temperature=0.0, max_tokens=tokens, mode=mode)
    for problem in generate(1, "test", turns, steps=(2, 2)):
        messages += _turn("user", problem.question)
        [result] = engine.chat(messages, params, use_tqdm=False)
        rounds.append((Prompt(result.prompt_token_ids, problem.question),))
        messages += _turn("assistant", result.outputs[0].text)
    return Scene("chat", tuple(rounds), 1, tokens)


def few_shot_scene(engine: Engine, count: int, shots: int, tokens: int) -> Scene:
    """Problems after the same worked examples, all asked at once."""
    examples = _shots(generate(2, "train", shots))
    prompts = tuple(
        _prompt(engine, [*examples, *_turn("user", problem.question)])
        for problem in generate(3, "test", count, steps=(2, 3))
    )
    return Scene("few-shot", (prompts,), 1, tokens)


def unrelated_scene(engine: Engine, count: int, tokens: int) -> Scene:
    """Short prompts whose first tokens differ already: nothing to find in a cache."""
    questions = [problem.question for problem in generate(4, "test", count)]
    encode = engine.get_tokenizer().encode
    prompts = tuple(
        Prompt((32 + number, *encode(question, add_special_tokens=False)[:15]), question)
        for number, question in enumerate(questions)
    )
    return Scene("unrelated", (prompts,), 1, tokens, ignore_eos=True)


def _prompt(engine: Engine, messages: Sequence[Message]) -> Prompt:
    ids: Any = engine.get_tokenizer().apply_chat_template(
        list(messages), add_generation_prompt=True, return_dict=False
    )
    return Prompt(tuple(ids), messages[-1]["content"])


def _shots(problems: Sequence[Problem]) -> list[Message]:
    return [
        message
        for problem in problems
        for message in (*_turn("user", problem.question), *_turn("assistant", problem.solution))
    ]


def _turn(role: str, text: str) -> list[Message]:
    return [{"role": role, "content": text}]
