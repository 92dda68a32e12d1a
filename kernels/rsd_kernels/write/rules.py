"""What `write` goes by, the same for every pass of a writer."""

from __future__ import annotations

from dataclasses import dataclass

from rsd_kernels.retokenise.rules import EndRules
from rsd_kernels.state.enums import ConfidenceKind, Role
from rsd_kernels.state.tables import MergeTables, StepTables


@dataclass(frozen=True)
class WriteRules:
    """The tables of a writer's vocabulary, and where its steps go."""

    tables: StepTables
    merges: MergeTables | None  # None: the host brings steps to the PRM, through text
    tokens_per_page: tuple[int, int, int]
    confidence: ConfidenceKind = ConfidenceKind.NONE  # by which steps are decided without a PRM
    verifies: bool = False  # whether a sequence may have several places
    ends: EndRules | None = None  # of kept steps; None: they stay as they were written

    def measured(self, role: int) -> ConfidenceKind:
        """What `confidence` becomes the mean of: the draft's, where steps are decided by it."""
        return self.confidence if role == Role.DRAFT else ConfidenceKind.NONE
