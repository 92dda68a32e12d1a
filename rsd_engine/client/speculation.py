"""What servers tell of their drafts: with each answer, or as counters for Prometheus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openai import APIError, AsyncOpenAI

_COUNTERS = (
    "vllm:spec_decode_num_draft_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_total",
    "vllm:spec_decode_num_drafts_total",
)


@dataclass(frozen=True)
class Speculation:
    """Tokens that a draft wrote, those of them that were kept, and its rounds.

    A round of RSD is a scored step. Without rounds (0) the server did not tell them.
    """

    drafted: int = 0
    accepted: int = 0
    rounds: int = 0

    def __add__(self, other: Speculation) -> Speculation:
        return Speculation(
            self.drafted + other.drafted,
            self.accepted + other.accepted,
            self.rounds + other.rounds,
        )

    def __sub__(self, other: Speculation) -> Speculation:
        return Speculation(
            self.drafted - other.drafted,
            self.accepted - other.accepted,
            self.rounds - other.rounds,
        )


def speculation_of(chunk: Any) -> Speculation | None:
    """Of one answer, by its chunk with the usage.

    That is vLLM's numbers of a request, or else OpenAI's counts of predicted tokens.
    """
    metrics = getattr(chunk, "metrics", None) or {}
    found = metrics.get("speculative_decoding")
    if found:
        return Speculation(
            found["num_draft_tokens"], found["num_accepted_draft_tokens"], found["num_spec_steps"]
        )
    details = chunk.usage.completion_tokens_details
    accepted = getattr(details, "accepted_prediction_tokens", None) or 0
    rejected = getattr(details, "rejected_prediction_tokens", None) or 0
    return Speculation(accepted + rejected, accepted) if accepted + rejected else None


async def speculation_counters(client: AsyncOpenAI) -> Speculation | None:
    """Of all answers so far, by vLLM's counters beside the API; None where there are none."""
    try:
        text = await client.get(str(client.base_url.join("../metrics")), cast_to=str)
    except APIError:
        return None
    sums = [_sum_of(name, text) for name in _COUNTERS]
    return Speculation(*sums) if any(sums) else None


def _sum_of(name: str, text: str) -> int:
    """Sum of a counter over all its labels, in Prometheus' text format."""
    lines = [line for line in text.splitlines() if line.partition("{")[0].split(" ")[0] == name]
    return int(sum(float(line.rsplit("}", 1)[-1].split()[-1]) for line in lines))
