"""How an engine uses its memory: weights, pages, activations and state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from rsd_engine.engine.memory_estimate import by_role_name
from rsd_engine.engine.models import ModelSet
from rsd_engine.engine.weight_use import count_bytes, held_by_format
from rsd_engine.loop.rsd import Loop
from rsd_engine.memory.available import megabytes
from rsd_engine.memory.page_pool import PagePool
from rsd_kernels.state.enums import Role
from rsd_kernels.state.slots import SlotState


@dataclass(frozen=True)
class PageUse:
    """How one role uses its pages.

    Attributes:
        bytes_per_token: K and V of one token, all layers.
        tokens_per_page: tokens that a page of this role holds.
        remainder: bytes at the end of every page, too few for one more token.
        pages_held: pages that slots hold now.
        tokens_held: tokens whose K and V are in these pages.
    """

    bytes_per_token: int
    tokens_per_page: int
    remainder: int
    pages_held: int
    tokens_held: int


@dataclass(frozen=True)
class MemoryReport:
    """Bytes that an engine has allocated, each counted once, and the use of its pages.

    Attributes:
        formats: of the weights of each role, by what they are held in, such as "Q4_K"; of plain
            matrices and of vectors that is their dtype.
        pool: the page pool: K and V of all roles.
        page_bytes: of one page.
        pages: how each role uses its pages.
        activations: buffers of the forwards, logits and rewards, and of sampling on a GPU.
        state: slots, their contexts and page tables.
        log: the step log, by which decided steps reach the host.
        tables: vocabulary and rope tables, and the rows of a pass.
    """

    formats: Mapping[Role, Mapping[str, int]]
    pool: int
    page_bytes: int
    pages: Mapping[Role, PageUse]
    activations: int
    state: int
    log: int
    tables: int

    @property
    def weights(self) -> dict[Role, int]:
        """Of each role, in all formats; 0 for a role that uses those of another."""
        return {role: sum(formats.values()) for role, formats in self.formats.items()}

    @property
    def total(self) -> int:
        parts = (self.pool, self.activations, self.state, self.log, self.tables)
        return sum(self.weights.values()) + sum(parts)

    @property
    def page_waste(self) -> float | None:
        """Share of the held pages that stays empty; None while no page is held."""
        held = self.page_bytes * sum(use.pages_held for use in self.pages.values())
        used = sum(use.tokens_held * use.bytes_per_token for use in self.pages.values())
        return 1 - used / held if held else None

    def lines(self) -> list[tuple[str, str]]:
        """(label, text) in the order to show them."""
        rows = [
            (f"{name} weights", _weights(formats))
            for name, formats in by_role_name(self.formats).items()
        ]
        rows.append(("page pool", f"{megabytes(self.pool)}, {self.page_bytes} bytes per page"))
        for name, use in by_role_name(self.pages).items():
            sizes = f"{use.bytes_per_token} bytes per token, {use.tokens_per_page} tokens per page"
            unusable = 100 * use.remainder / self.page_bytes
            rows.append((f"{name} KV", f"{sizes}, {unusable:.1f} % of a page unusable"))
        if self.page_waste is not None:
            rows.append(("held pages", f"{100 * self.page_waste:.1f} % empty"))
        for label in ("activations", "state", "log", "tables"):
            rows.append((label, megabytes(getattr(self, label))))
        rows.append(("total", megabytes(self.total)))
        return rows

    def text(self) -> str:
        """`lines` as a table."""
        rows = self.lines()
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        values: dict[str, Any] = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("formats", "pages")
        }
        values["formats"] = by_role_name(self.formats)
        values["weights"] = by_role_name(self.weights)
        values["pages"] = {name: vars(use) for name, use in by_role_name(self.pages).items()}
        return values | {"total": self.total, "page_waste": self.page_waste}


def report_memory(models: ModelSet, pool: PagePool, loop: Loop) -> MemoryReport:
    """Counts every tensor of an engine once. It reads a few, so call it between launches."""
    counted: set[int] = set()
    formats = {role: held_by_format(model, counted) for role, model in models.models.items()}
    pool_bytes = count_bytes(pool.buffer, counted)
    decoders = [model.decoder for model in models.models.values()]
    scratch = [(decoder.activations, decoder.scratch) for decoder in decoders]
    activations = count_bytes([scratch, loop.logits, loop.sample_scratch], counted)
    log = count_bytes(loop.state.log, counted)
    state = count_bytes(loop.state, counted)
    rest = [vars(decoder) for decoder in decoders]
    tables = count_bytes([rest, vars(loop)], counted)
    return MemoryReport(
        formats=formats,
        pool=pool_bytes,
        page_bytes=pool.page_bytes,
        pages=_page_use(models, pool, loop.state),
        activations=activations,
        state=state,
        log=log,
        tables=tables,
    )


def _weights(formats: Mapping[str, int]) -> str:
    """All of them, and by format."""
    total = megabytes(sum(formats.values()))
    if not formats:
        return f"{total}, those of another role"
    return f"{total}: " + ", ".join(f"{megabytes(size)} {name}" for name, size in formats.items())


def _page_use(models: ModelSet, pool: PagePool, state: SlotState) -> dict[Role, PageUse]:
    found = {}
    for role, shape in models.kv_shapes.items():
        tokens = pool.tokens_per_page(shape)
        found[role] = PageUse(
            bytes_per_token=shape.bytes_per_token,
            tokens_per_page=tokens,
            remainder=pool.page_bytes - tokens * shape.bytes_per_token,
            pages_held=int(state.num_pages[role].sum()),
            tokens_held=int(state.kv_len[role].sum()),
        )
    return found
