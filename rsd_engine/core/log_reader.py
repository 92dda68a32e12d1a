"""Reads records from the step log on the host, even while a launch is writing to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rsd_engine.core.events import StepDecided, TokenLogprobs
from rsd_engine.core.mailbox import Mailbox
from rsd_kernels.state.enums import LOG_HEADER, LOGPROB_WORDS, Finish, RecordKind, Role


@dataclass(frozen=True)
class LogRecord:
    """One decided step as the device wrote it."""

    slot: int
    generation: int
    kind: RecordKind
    source: Role
    reward: float
    finish: Finish
    guesses: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None

    def event(self, key: int) -> StepDecided:
        """The same for those who know the request by its key."""
        return StepDecided(
            key=key,
            kind=self.kind,
            source=self.source,
            reward=self.reward,
            token_ids=self.token_ids,
            finish=self.finish,
            guesses=self.guesses,
            logprobs=self.logprobs,
        )


class TornLogError(RuntimeError):
    """The log ends behind a record that is not there: what was decided is lost."""


class LogReader:
    """Takes records off the log in order. The device writes a record before it moves the end."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._read = 0  # words taken since the log was emptied

    def take(self) -> list[LogRecord]:
        """The records written since the last call.

        Raises:
            TornLogError: a record has a size that none can have, such as 0.
        """
        end = int(self._mailbox.log_end)
        words = self._mailbox.log[self._read : end].numpy().copy()
        records, at = [], 0
        while at < len(words):
            size, left = int(words[at]), len(words) - at
            if not LOG_HEADER <= size <= left:
                raise TornLogError(
                    f"the record at word {self._read + at} of the step log has size {size}; "
                    f"allowed: {LOG_HEADER} to {left}, up to the log's end. The device has not "
                    "written it: start a new process with a new engine"
                )
            records.append(_record(words[at : at + size]))
            at += size
        self._read = end
        return records

    def rewind(self) -> None:
        """Empties the log. Call it between launches, after `take`.

        What was read is cleared, so that an old record never passes for one not yet written.
        """
        self._mailbox.log[: self._read] = 0
        self._mailbox.log_end.zero_()
        self._mailbox.log_head.zero_()
        self._read = 0


def _record(words: np.ndarray) -> LogRecord:
    _, slot, generation, kind, source, _, finish, num_tokens, guesses = words[:LOG_HEADER].tolist()
    tokens_end = LOG_HEADER + num_tokens
    return LogRecord(
        slot=slot,
        generation=generation,
        kind=RecordKind(kind),
        source=Role(source),
        reward=float(words[5:6].view(np.float32)[0]),
        finish=Finish(finish),
        guesses=guesses,
        token_ids=tuple(words[LOG_HEADER:tokens_end].tolist()),
        logprobs=_logprobs(words[tokens_end:], num_tokens),
    )


def _logprobs(words: np.ndarray, num_tokens: int) -> tuple[TokenLogprobs, ...] | None:
    if num_tokens == 0 or len(words) == 0:
        return None
    blocks = words.reshape(num_tokens, -1)
    k = (blocks.shape[1] - LOGPROB_WORDS) // 2
    ranks, ids = blocks[:, 1].tolist(), blocks[:, LOGPROB_WORDS : LOGPROB_WORDS + k]
    own = np.ascontiguousarray(blocks[:, :1]).view(np.float32)[:, 0]
    values = np.ascontiguousarray(blocks[:, LOGPROB_WORDS + k :]).view(np.float32)
    return tuple(
        TokenLogprobs(
            float(own[i]), ranks[i], dict(zip(ids[i].tolist(), values[i].tolist(), strict=True))
        )
        for i in range(num_tokens)
    )
