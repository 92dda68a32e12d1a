"""The work that loop benchmarks run: steps of a given length after a context of a given length.

Everything in a scene is real but one thing: the PRM scores every step, and the policy makes of the
score what the scene asks for (`Constant(p)`), so that a given share of the steps is rejected.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from rsd_engine import Constant, Engine, SamplingParams
from rsd_engine.core.slots import SlotRequest
from rsd_engine.engine.prompts import ResolvedPrompt
from rsd_engine.engine.requests.slots import slot_request
from rsd_kernels.philox.twin import DrawKey, uniform
from rsd_kernels.state.enums import Mode, Purpose

_SPARE = 64  # tokens by which a context may grow beyond its steps
_SEEDS = 100_000
_GOLDEN = (5**0.5 - 1) / 2  # its multiples modulo 1 spread evenly, however many there are

ModeName = Literal["rsd", "draft", "target"]


@dataclass(frozen=True)
class Scene:
    """What every slot does: `steps` steps of `step_tokens` tokens after `context` tokens.

    Attributes:
        mode: "rsd", or "draft" or "target" alone.
        acceptance: chance that a draft step is kept.
        seed: of the first slot; the others follow.
        uneven: whether slots write steps of different lengths, up to a half longer or shorter than
            `step_tokens`; all write the same number of tokens, in fewer or more steps.
        logprobs: number of most likely tokens to report with every token; None for no logprobs.
    """

    mode: ModeName
    acceptance: float
    slots: int
    context: int
    step_tokens: int
    steps: int
    seed: int = 1000
    uneven: bool = False
    logprobs: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens that a slot writes and keeps."""
        return self.steps * self.step_tokens

    @property
    def model_len(self) -> int:
        """The `max_model_len` that an engine needs to play it."""
        return self.context + self.tokens + _SPARE

    @property
    def num_steps(self) -> int:
        """Kept steps of all slots."""
        return sum(len(self.step_lengths(slot)) for slot in range(self.slots))

    def longest_step(self, slot: int) -> int:
        """Tokens of every step of a slot but the last, which may be cut short."""
        share = (0.5 + slot * _GOLDEN) % 1 - 0.5 if self.uneven else 0.0
        return max(1, round(self.step_tokens * (1 + share)))

    def step_lengths(self, slot: int) -> list[int]:
        """Tokens of a slot's steps, in order."""
        longest = self.longest_step(slot)
        return [min(longest, self.tokens - at) for at in range(0, self.tokens, longest)]


def scene_request(engine: Engine, scene: Scene, slot: int) -> SlotRequest:
    """The request of one slot; prompts differ and are equally long."""
    rules = engine.parts.rules
    ids = prompt_ids(scene, slot)
    params = SamplingParams(
        temperature=0.0,
        max_tokens=scene.tokens,
        max_steps=len(scene.step_lengths(slot)),
        max_step_tokens=scene.longest_step(slot),
        logprobs=scene.logprobs,
        ignore_eos=True,
        mode=scene.mode,
        policy=Constant(scene.acceptance),
    )
    prompt = ResolvedPrompt(text=None, token_ids=tuple(ids), question="?")
    request = slot_request(prompt, params, rules, seed=scene.seed + slot)
    prm_prompt = tuple(ids) if request.mode == Mode.RSD else ()
    return replace(request, prm_prompt=prm_prompt)


def prompt_ids(scene: Scene, slot: int) -> list[int]:
    """The prompt of a slot."""
    return [2 + (slot * 7 + i) % 200 for i in range(scene.context)]


def scene_of(scene: Scene, rejected: float) -> Scene:
    """The scene with a seed for which exactly this share of all steps is rejected.

    Raises:
        ValueError: there is no such seed.
    """
    wanted = round(rejected * scene.num_steps)
    for seed in range(_SEEDS):
        if sum(draw >= 1 - rejected for draw in _accept_draws(scene, seed)) == wanted:
            return replace(scene, acceptance=1 - rejected, seed=seed)
    raise ValueError(
        f"rejected must be a share that {scene.num_steps} steps can have, got {rejected}"
    )


def _accept_draws(scene: Scene, seed: int) -> Iterator[float]:
    """The draw that decides on every step of every slot; a rewrite is as long as its draft."""
    for slot in range(scene.slots):
        for step, end in enumerate(accumulate(scene.step_lengths(slot))):
            yield uniform(DrawKey(seed + slot, 0, step, scene.context + end, Purpose.ACCEPT))
