"""Greedy texts of this engine and of llama.cpp from one file, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rsd_engine import Engine, SamplingParams

PROMPTS = (
    "The capital of France is",
    "A short recipe for bread: first,",
    "Once upon a time there was a lighthouse keeper who",
    "Question: what is 17 + 25? Answer:",
    "def fibonacci(n):\n",
    "The three states of matter are",
    "Dear Sir or Madam,\n\nI am writing to",
    "In the theory of evolution, natural selection",
    "Water boils at 100 degrees Celsius because",
    "List of the planets, from the Sun outwards: Mercury,",
)
NUM_TOKENS = 64
CONTEXT = 128  # tokens that any of these texts has at most, with its prompt
NEAR_TIE = 0.25
"""Nats between two tokens below which rounded activations may choose either."""
_REPORTED = 20  # tokens at each position whose probability is known


@dataclass(frozen=True)
class Difference:
    """The first token at which a text differs: its position, and how near the two are."""

    prompt: int
    position: int
    gap: float | None  # nats, by our own probabilities; None: theirs is not among the likely ones

    @property
    def is_near_tie(self) -> bool:
        return self.gap is not None and self.gap < NEAR_TIE


@dataclass(frozen=True)
class Texts:
    """What came of all prompts."""

    count: int
    differences: Sequence[Difference]

    def to_dict(self) -> dict[str, Any]:
        return {
            "prompts": self.count,
            "tokens": NUM_TOKENS,
            "equal": self.count - len(self.differences),
            "differ_at_near_ties": sum(d.is_near_tie for d in self.differences),
            "differences": [asdict(d) for d in self.differences],
        }

    def __str__(self) -> str:
        ties = sum(d.is_near_tie for d in self.differences)
        return (
            f"{self.count - len(self.differences)} of {self.count} greedy texts of {NUM_TOKENS} "
            f"tokens are equal to llama.cpp's; {ties} differ first at a near-tie (less than "
            f"{NEAR_TIE} nats), {len(self.differences) - ties} elsewhere"
        )


def compared(
    engine: Engine, theirs: Callable[[Sequence[list[int]], int], list[list[int]]]
) -> Texts:
    """Both write every prompt on, one at a time."""
    tokenizer = engine.get_tokenizer()
    params = SamplingParams(
        temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=_REPORTED
    )
    found = []
    for number, text in enumerate(PROMPTS):
        prompt = tokenizer.encode(text, add_special_tokens=False)
        output = engine.generate([prompt], params, use_tqdm=False)[0].outputs[0]
        other = theirs([prompt], NUM_TOKENS)[0]
        differ = [i for i, pair in enumerate(zip(output.token_ids, other, strict=True)) if
                  pair[0] != pair[1]]  # fmt: skip
        if differ and output.logprobs:
            at = differ[0]
            likely = {token: entry.logprob for token, entry in output.logprobs[at].items()}
            gap = None
            if other[at] in likely:
                gap = likely[output.token_ids[at]] - likely[other[at]]
            found.append(Difference(number, at, gap))
    return Texts(len(PROMPTS), found)
