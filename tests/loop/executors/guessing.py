"""Requests whose tokens are guessed, and how many guesses were made and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rsd_engine.core.engine_core import EngineCore
from rsd_engine.core.events import Event, RequestDone
from rsd_engine.core.slots import SlotRequest
from rsd_engine.outputs import GuessCounts
from rsd_kernels.state.enums import GuessSource, Speculation
from tests.loop.toy import run

SOURCES = [
    Speculation.DRAFT,
    Speculation.REJECTED | Speculation.DRAFT,
    Speculation.NGRAM | Speculation.REJECTED,
    Speculation.NONE,
]
MAX_GUESSES = 6  # of a pass


Counts = Mapping[int, Mapping[GuessSource, GuessCounts]]


def guessing(requests: Sequence[SlotRequest]) -> list[SlotRequest]:
    """The same requests, with guesses from every source."""
    return [
        replace(request, speculation=SOURCES[i % 4], guess_tokens=(2, 0, 5)[i % 3])
        for i, request in enumerate(requests)
    ]


def run_guessing(core: EngineCore, requests: Sequence[SlotRequest]) -> dict[int, list[Event]]:
    core.state.guesses_at_rate.fill_(2)
    return run(core, guessing(requests))


def counts(events: Mapping[int, Sequence[Event]]) -> Counts:
    """Of every request: guesses made and kept, by source."""
    return {
        event.key: event.guesses
        for found in events.values()
        for event in found
        if isinstance(event, RequestDone)
    }
