"""What a process holds: threads, open files, memory, and records of requests."""

from __future__ import annotations

import gc
import os
import resource
from dataclasses import dataclass
from pathlib import Path

from rsd_engine import StepEvent
from rsd_engine.engine.claim import Claim
from rsd_engine.engine.results.request import RequestBuilder

_SELF = Path("/proc/self")
_RECORDS = (RequestBuilder, Claim, StepEvent)


@dataclass(frozen=True)
class Resources:
    """Counts at one moment, after garbage collection."""

    threads: int
    files: int
    records: int  # of requests and their events
    rss: int  # bytes

    @classmethod
    def now(cls) -> Resources:
        gc.collect()
        pages = int((_SELF / "statm").read_text().split()[1])
        return cls(
            threads=len(os.listdir(_SELF / "task")),
            files=len(os.listdir(_SELF / "fd")),
            records=sum(type(found) in _RECORDS for found in gc.get_objects()),
            rss=pages * resource.getpagesize(),
        )
