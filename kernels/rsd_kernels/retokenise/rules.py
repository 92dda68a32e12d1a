"""What the ends of kept steps are settled by, the same for every op that keeps steps."""

from __future__ import annotations

from dataclasses import dataclass

from rsd_kernels.state.tables import MergeTables, StepTables


@dataclass(frozen=True)
class EndRules:
    """The vocabulary that draft and target share, and how its tokenizer splits text."""

    tables: StepTables
    merges: MergeTables | None  # None: every step just kept waits for the host
