"""Draw a token at every place of a pass: penalties, temperature, min-p, top-k, top-p.

A draw is the kept id with the largest logit / temperature + Gumbel noise (Gumbel-max: Maddison et
al., 2014). An id's noise depends on the id and on what the draw is for (`DrawKey`), never on other
ids or logits: two distributions that are drawn from with one key often give the same token.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from rsd_kernels.cpu import ops as cpu_ops
from rsd_kernels.gumbel.twin import MOST_NOISE, noise
from rsd_kernels.philox.twin import DrawKey
from rsd_kernels.sample.append_twin import append
from rsd_kernels.sample.scratch import SampleScratch
from rsd_kernels.state.columns import host, number, write, write_at
from rsd_kernels.state.enums import NOT_FINITE, ConfidenceKind, Phase, Purpose, Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState
from rsd_kernels.state.tables import StepTables


def sample_append(
    state: SlotState,
    batch: RowBatch,
    logits: Tensor,  # [M, V] float32, only ids that may be sampled; overwritten
    tables: StepTables,
    role: int,
    scratch: SampleScratch | None = None,
    confidence: ConfidenceKind = ConfidenceKind.NONE,
    *,
    verifies: bool = False,
) -> None:
    """Draws a token at each place, appends it and looks for the end of the step.

    At a place behind a guess that token counts only if the guesses up to there are what was drawn.
    The draft's token for a slot in phase GUESS becomes a guess.

    Where the logits are not finite, `place_token` is NOT_FINITE and nothing is appended.

    scratch, verifies (whether a sequence may have several places): for the kernels alone.
    confidence: what `confidence` becomes the mean of.
    """
    sample(state, batch, logits, role, confidence)
    append(state, batch, tables, role)


def sample(
    state: SlotState,
    batch: RowBatch,
    logits: Tensor,  # [M, V] float32, only ids that may be sampled; overwritten
    role: int,
    confidence: ConfidenceKind = ConfidenceKind.NONE,
) -> None:
    """Writes `place_token`, and logprobs where asked for."""
    n = number(state.num_places)
    if n == 0:
        return
    logits = logits[:n]
    finite = finite_rows(logits)
    slots, positions = host(batch.place_slot)[:n], host(batch.place_position)[:n]
    largest = _largest(logits) if _all_plain(state, slots, positions) else [None] * n
    tokens = [NOT_FINITE] * n
    for p, (b, position) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
        if finite[p]:
            tokens[p] = sample_place(state, b, position, logits[p], role, confidence, largest[p])
    write(batch.place_token, tokens)


def sample_place(
    state: SlotState,
    slot: int,
    position: int,
    logits: Tensor,  # [V] float32, finite
    role: int,
    confidence: ConfidenceKind = ConfidenceKind.NONE,
    largest: int | None = None,
) -> int:
    """The token at one place, or NOT_FINITE; writes its logprobs where asked for.

    largest: the id of the largest logit, where that is all that the slot needs.
    """
    guesses = number(state.phase, slot) == Phase.GUESS
    writer = Role.TARGET if guesses else role  # whose token is guessed
    token = _choose(state, slot, position, logits, writer) if largest is None else largest
    if token != NOT_FINITE:
        if number(state.num_logprobs, slot) >= 0:
            _record_logprobs(state, slot, position, logits, token)
        if confidence and not guesses:
            add_confidence(state, slot, logits, token, confidence)
    return token


def _choose(state: SlotState, slot: int, position: int, logits: Tensor, writer: int) -> int:
    """The token at one place; NOT_FINITE if every id is forbidden, or none can be drawn."""
    adjusted = _adjust(state, slot, position, logits)
    if float(host(state.temperature)[slot]) == 0:
        changed = adjusted is not logits
        none = changed and bool(torch.isneginf(adjusted.max()))
        return NOT_FINITE if none else int(adjusted.argmax())
    if not bool(torch.isfinite(adjusted.max() / state.temperature[slot])):
        return NOT_FINITE
    scores = kept_scores(
        adjusted,
        temperature=float(state.temperature[slot]),
        top_k=int(state.top_k[slot]),
        top_p=float(state.top_p[slot]),
        min_p=float(state.min_p[slot]),
    )
    return draw(scores, DrawKey.of_slot(state, slot, position, Purpose.token_of(writer)))


def _all_plain(state: SlotState, slots: np.ndarray, positions: np.ndarray) -> bool:
    """Whether every place needs only its largest logit."""
    plain = (
        (host(state.temperature)[slots] == 0)
        & (host(state.repetition_penalty)[slots] == 1)
        & (host(state.adjusts)[slots] == 0)
        & (positions >= host(state.min_length)[slots])
    )
    return bool(plain.all())


def finite_rows(logits: Tensor) -> list[bool]:
    """Whether the logits of each place are finite, by their sum: one that is not shows there."""
    if logits.device.type != "cpu":
        return [bool(finite) for finite in torch.isfinite(logits.sum(-1)).tolist()]
    with np.errstate(invalid="ignore", over="ignore"):
        return [math.isfinite(total) for total in logits.numpy().sum(-1).tolist()]


def _largest(logits: Tensor) -> list[int]:
    """The id of the largest logit of each place, the first of equals.

    On a CPU by numpy, whose search uses vector instructions: 20 times faster over 50,000 ids.
    """
    found = logits.numpy().argmax(-1) if logits.device.type == "cpu" else logits.argmax(-1)
    return [int(token) for token in found.tolist()]


def _adjust(state: SlotState, slot: int, length: int, logits: Tensor) -> Tensor:
    """Biases, ids that may not be sampled, then penalties, as in vLLM.

    The logits themselves, if the request changes nothing.

    length: of the context that counts, with guesses up to the place.
    """
    adjusts, early = number(state.adjusts, slot), length < number(state.min_length, slot)
    penalty = float(state.repetition_penalty[slot])
    if not adjusts and not early and penalty == 1:
        return logits
    adjusted = _biased(state, slot, logits) if adjusts else logits.clone()
    if adjusts:
        adjusted[_ends_of_bad_words(state, slot, length)] = -torch.inf
    if early:
        stops = state.stop_tokens[slot]
        adjusted[stops[(stops >= 0) & (stops < logits.shape[0])].long()] = -torch.inf
    if penalty != 1:
        seen = state.tokens[slot, :length].long()
        seen = seen[seen < logits.shape[0]]
        values = adjusted[seen]
        adjusted[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if adjusts:
        _penalise_output(state, slot, length, adjusted)
    return adjusted


def _biased(state: SlotState, slot: int, logits: Tensor) -> Tensor:
    """Adds the request's biases; other ids keep their logits, or may not be sampled at all."""
    count = int(state.num_biased[slot])
    ids = state.biased_token[slot, :count].long()
    biased = torch.full_like(logits, -torch.inf) if state.only_biased[slot] else logits.clone()
    biased[ids] = logits[ids] + state.bias[slot, :count]
    return biased


def _ends_of_bad_words(state: SlotState, slot: int, length: int) -> Tensor:
    """Ids that would complete a bad word; the words are looked for in the output alone."""
    words = state.bad_words[slot, : int(state.num_bad_words[slot])]  # [words, tokens of each]
    before = words.shape[1] - 1
    output = state.tokens[slot, int(state.prompt_length[slot]) : length][-before:]
    tail = torch.full((before,), -2, dtype=torch.int32, device=words.device)
    tail[before - len(output) :] = output
    begun = ((words[:, :-1] == tail) | (words[:, :-1] < 0)).all(1)
    return words[begun, -1].long()


def _penalise_output(state: SlotState, slot: int, length: int, logits: Tensor) -> None:
    """Frequency penalty for every time that an id is in the output, presence penalty once."""
    frequency, presence = state.frequency_penalty[slot], state.presence_penalty[slot]
    if not (frequency or presence):
        return
    output = state.tokens[slot, int(state.prompt_length[slot]) : length].long()
    ids, counts = output[output < logits.shape[0]].unique(return_counts=True)
    logits[ids] = logits[ids] - frequency * counts - presence


def kept_scores(
    logits: Tensor,  # [V] float32
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
) -> Tensor:
    """logit / temperature, less the largest of all, [V] float32; minus infinity: filtered out.

    In vLLM's order: temperature, min-p, top-k, top-p. Ids tied at a cut-off are kept.
    """
    scores = logits / temperature
    scores -= scores.max()
    if min_p > 0:
        scores[scores.exp() < min_p] = -torch.inf
    if 0 < top_k < len(scores):
        scores[scores < scores.topk(top_k).values[-1]] = -torch.inf
    if top_p < 1:
        probabilities = scores.double().softmax(-1)
        # Those below this, all together, have less than 1 - top_p.
        likely = probabilities[probabilities >= (1 - top_p) / len(scores)]
        ordered = likely.sort(descending=True).values
        kept = int(((ordered.cumsum(-1) - ordered) < top_p).sum())
        scores[probabilities < ordered[kept - 1]] = -torch.inf
    return scores


def draw(
    scores: Tensor,  # [V] float32, as `kept_scores` leaves them
    key: DrawKey,
) -> int:
    """The id with the largest score + noise, the first of equals; the largest score is 0."""
    if cpu_ops.suits(scores) and cpu_ops.available():
        return cpu_ops.draw(scores, key)
    return noisy_largest(scores, key)


def noisy_largest(scores: Tensor, key: DrawKey) -> int:
    """`draw` in numpy."""
    values = host(scores)
    ids = np.flatnonzero(values > -MOST_NOISE)
    return int(ids[np.argmax(values[ids] + noise(key, ids))])


def add_confidence(
    state: SlotState, slot: int, logits: Tensor, token: int, kind: ConfidenceKind
) -> None:
    """Takes a token that is about to be appended into the mean of its step."""
    logprobs = logits.log_softmax(-1)
    if kind == ConfidenceKind.ENTROPY:
        entropy = -(logprobs.exp() * logprobs).sum()
        certain = 1 - float(entropy) / math.log(len(logits))
    else:
        certain = float(logprobs[token])
    before = number(state.length, slot) - number(state.committed, slot)
    mean = float(host(state.confidence)[slot]) if before else 0.0
    write_at(state.confidence, slot, mean + (certain - mean) / (before + 1))


def _record_logprobs(
    state: SlotState, slot: int, position: int, logits: Tensor, token: int
) -> None:
    """The model's own logprobs, before anything changes them, as in vLLM."""
    k = int(state.num_logprobs[slot])
    logprobs = logits.log_softmax(-1)
    state.token_logprob[slot, position] = logprobs[token]
    ties = int((logits[:token] == logits[token]).sum())
    state.token_rank[slot, position] = int((logits > logits[token]).sum()) + ties + 1
    values, ids = logprobs.topk(min(k, logprobs.shape[0]))
    state.top_logprob[slot, position, : len(values)] = values
    state.top_token[slot, position, : len(ids)] = ids.int()
