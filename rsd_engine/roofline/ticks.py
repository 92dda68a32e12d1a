"""What one decode tick of a writer launches, as the program itself launches it.

The models and the state are on device "meta": nothing is allocated, and nothing runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from rsd_engine.loop.program import Block, Call, Switch, While
from rsd_engine.loop.rsd import Loop, build_program
from rsd_engine.memory.page_pool import PagePool
from rsd_engine.models.allocation import Allocation
from rsd_engine.models.config import ModelConfig
from rsd_engine.models.decoder import Decoder
from rsd_engine.models.heads import LanguageModel
from rsd_engine.models.weights import DecoderWeights
from rsd_kernels.launch import Launch, available, recorded_launches
from rsd_kernels.state.enums import Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotSizes, SlotState
from rsd_kernels.state.tables import MergeTables, StepTables

MAX_TICK_ROWS = 16  # wider passes use library products, which are not launched here
_META = torch.device("meta")
_MAX_LEN = 4096
_TOKENS_PER_PAGE = 16
_ALIGNMENT = 256  # bytes
_TABLE_SIZE = 4096  # of tables whose size no launch depends on


@dataclass(frozen=True)
class Tick:
    """The launches of one tick, in order.

    Attributes:
        forward: of the writer's pass.
        control: of everything around it, by the name of the op.
        num_arms: launches that set the handles of conditional nodes, on the device loop alone.
        layers: ids of the matrices of layers, which launches have as `weight`.
    """

    forward: list[Launch]
    control: dict[str, list[Launch]]
    num_arms: int
    layers: frozenset[int] = frozenset()


def decode_tick(
    config: ModelConfig, dtype: torch.dtype, num_rows: int = 1, role: Role = Role.DRAFT
) -> Tick:
    """What a tick launches in which `num_rows` slots write one token each.

    Args:
        config: of the model.
        dtype: of its weights.
        num_rows: of the pass, and slots of the engine.
        role: draft or target.

    Raises:
        ValueError: there is no body for so many rows.
        ImportError: Triton is not installed.
    """
    if not 1 <= num_rows <= MAX_TICK_ROWS:
        raise ValueError(f"num_rows is {num_rows}; it must be in [1, {MAX_TICK_ROWS}]")
    if not available():
        raise ImportError("Triton is not installed, and its launchers are what is asked")
    model = _language_model(config, dtype, num_rows)
    loop = _loop(model, num_rows, role)
    forward: list[Launch] = []
    control: dict[str, list[Launch]] = {}
    num_arms = 0
    for call in _calls_of_a_tick(build_program(loop, (num_rows,)), int(role)):
        with recorded_launches() as launches:
            call.run()
        num_arms += bool(call.sets)
        if call.name.endswith(".forward"):
            forward = launches
        else:
            control[call.name.rpartition(".")[2]] = launches
    layers = model.decoder.weights.layers
    linears = [w for layer in layers for w in (layer.qkv, layer.o, layer.gate_up, layer.down)]
    matrices = frozenset(id(table) for weight in linears for table in weight.tables)
    return Tick(forward, control, num_arms, matrices)


def _calls_of_a_tick(block: Block, body: int) -> Iterator[Call]:
    """The ops of one turn of the loop that goes through this body."""
    for node in block:
        if isinstance(node, Call):
            yield node
        elif isinstance(node, While):
            yield from _calls_of_a_tick(node.body, body)
        else:
            assert isinstance(node, Switch)
            yield from _calls_of_a_tick(node.bodies[body], body)


def _loop(model: LanguageModel, num_rows: int, role: Role) -> Loop:
    """A loop whose one model writes; a PRM with the same vocabulary is assumed."""
    config, dtype = model.config, model.dtype
    sizes = SlotSizes(
        num_slots=num_rows, max_len=_MAX_LEN, prm_max_len=_MAX_LEN, pages_per_role=256,
        num_pages=_TABLE_SIZE, log_words=1 << 20, row_buckets=(num_rows,),
    )  # fmt: skip
    state = SlotState.allocate(sizes, _META)
    shape = config.kv_shape(dtype)
    page_bytes = -(-_TOKENS_PER_PAGE * shape.bytes_per_token // _ALIGNMENT) * _ALIGNMENT
    pool = PagePool(64, page_bytes, _META)
    kv = pool.view(shape)
    logits = torch.empty(num_rows, config.vocab_size, device=_META)
    forward = partial(
        model.logits, kv=kv, page_table=state.page_table[role], out=logits,
    )  # fmt: skip
    tables, merges = _tables(config.vocab_size)
    return Loop(
        state=state,
        batch=RowBatch.allocate(num_rows, num_rows, _META),
        tables=dict.fromkeys((Role.DRAFT, Role.TARGET), tables),
        merges=merges,
        tokens_per_page=(kv.tokens_per_page,) * 3,
        forwards={role: forward},
        score=None,
        logits=dict.fromkeys((Role.DRAFT, Role.TARGET), logits),
        pages=pool.pages,
    )


def _language_model(config: ModelConfig, dtype: torch.dtype, num_rows: int) -> LanguageModel:
    weights = DecoderWeights.allocate(config, dtype, _META)
    decoder = Decoder(config, weights, max_rows=num_rows, max_positions=_MAX_LEN)
    return LanguageModel(decoder, Allocation.on_meta().lm_head(config, weights))


def _tables(num_ids: int) -> tuple[StepTables, MergeTables]:
    def table(size: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device=_META)

    step = StepTables(
        table(1 << 20, torch.uint8), table(num_ids + 1), table(num_ids), table(_TABLE_SIZE),
        table(_TABLE_SIZE), table(num_ids), table(1), table(1), num_transient=1, as_written=0,
    )  # fmt: skip
    merges = MergeTables(
        table(num_ids, torch.uint8), table(256), table(_TABLE_SIZE, torch.int64),
        table(_TABLE_SIZE), table(_TABLE_SIZE),
    )  # fmt: skip
    return step, merges
