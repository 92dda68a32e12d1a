"""Log-probabilities by the names of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from rsd_engine.core.events import TokenLogprobs
from rsd_engine.outputs import Logprob
from rsd_engine.steps.vocabulary import Vocabulary


def named_logprobs(
    token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs], vocabulary: Vocabulary
) -> tuple[dict[int, Logprob], ...]:
    named = []
    for token, entry in zip(token_ids, logprobs, strict=True):
        top = {
            t: _logprob(t, value, rank, vocabulary)
            for rank, (t, value) in enumerate(entry.top.items(), start=1)
        }
        top.setdefault(token, _logprob(token, entry.logprob, entry.rank, vocabulary))
        named.append(top)
    return tuple(named)


def _logprob(token: int, value: float, rank: int, vocabulary: Vocabulary) -> Logprob:
    data = vocabulary.token_bytes[token]
    return Logprob(value, rank, data.decode("utf-8", errors="replace"), tuple(data))
