"""Batch inference: a stage of Ray Data, and whole runs from files to files that can be resumed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from ray.data import ActorPoolStrategy, Dataset
from ray.data.checkpoint import CheckpointConfig

from rsd_engine.engine.chat.questions import ChatSettings
from rsd_engine.engine.engine import Engine
from rsd_engine.integrations.ray.resuming import Run
from rsd_engine.integrations.ray.rows import ANSWER
from rsd_engine.integrations.ray.worker import Worker
from rsd_engine.sampling_params import SamplingParams

_START_DEATHS = 3  # in a row, of actors that load their models; with more the run ends
_BATCHES = 2  # in an engine at once: while the last rows of one end, those of the next fill slots


def answer_rows(
    dataset: Dataset,
    engine: Mapping[str, Any],
    params: SamplingParams | None = None,
    *,
    num_engines: int | tuple[int, int] = 1,
    num_gpus: float = 1,
    batch_size: int = 64,
    id_column: str = "id",
    chat: ChatSettings | None = None,
    **resources: Any,
) -> Dataset:
    """A stage that answers the rows of a dataset, with one engine an actor.

    >>> rows = ray.data.read_parquet("questions")
    >>> rows = answer_rows(rows, {"draft": D, "target": T, "prm": P}, num_engines=8)
    >>> rows.write_parquet("answers")

    Batches of an actor that dies are answered again: Ray starts another in its place.

    Args:
        dataset: rows with "question", "prompt", "messages" or "prompt_token_ids", and maybe
            "params" and "tools". Columns that are not plain may be JSON as text.
        engine: arguments of `Engine`.
        params: of all rows; None takes the checkpoint's defaults. The "params" of a row come first.
        num_engines: how many actors, or the least and the most.
        num_gpus: of an actor. On CPUs give 0, and `num_cpus`, which is also its number of threads.
        batch_size: rows that an actor gets at once.
        id_column: with `params.seed` it decides the seed of a row.
        chat: how questions become prompts.
        resources: what else an actor gets, as `map_batches` names it: `num_cpus`, `memory`,
            `accelerator_type`, `resources`, `runtime_env`.

    Returns:
        The rows with the columns of `ANSWER` added, one row for each sample.

    Raises:
        ValueError: `engine` has an argument that `Engine` has not.
    """
    allowed = sorted(inspect.signature(Engine).parameters)
    if unknown := sorted(set(engine) - set(allowed)):
        raise ValueError(f"engine has unknown arguments {unknown}; allowed: {allowed}")
    least, most = (num_engines, num_engines) if isinstance(num_engines, int) else num_engines
    return dataset.repartition(target_num_rows_per_block=batch_size).map_batches(
        Worker,
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            min_size=least,
            max_size=most,
            max_concurrent_calls_per_actor=_BATCHES,
            enable_true_multi_threading=True,
        ),
        fn_constructor_kwargs={
            "engine": dict(engine),
            "params": params,
            "id_column": id_column,
            "chat": chat,
        },
        num_gpus=num_gpus,
        **resources,
    )


def answer_files(
    source: str | Sequence[str] | Dataset,
    output: str,
    engine: Mapping[str, Any],
    params: SamplingParams | None = None,
    *,
    form: Literal["json", "parquet"] = "json",
    rows_per_file: int | None = None,
    id_column: str = "id",
    chat: ChatSettings | None = None,
    **stage: Any,
) -> None:
    """Answers all rows of files; the same call again goes on where a run has ended.

    Ray Data notes in `output` + ".checkpoint" which rows are written, and leaves them out the next
    time: each is in the output once, whatever was killed. A row with an error counts as written.

    Args:
        source: a JSONL or .parquet file, a folder of JSONL files, an address such as "s3://...", a
            list of them, or a dataset that Ray Data has read from files, with ids.
        output: a folder for the results, which all machines reach.
        engine: arguments of `Engine`.
        params: see `answer_rows`.
        form: of the results.
        rows_per_file: least rows of a file of results; by default one file for each batch. What
            is not yet in a file is answered again after a crash.
        id_column: tells rows apart: text or integers, all different.
        chat: see `answer_rows`.
        stage: other arguments of `answer_rows`.

    Raises:
        ValueError: ids or columns are not usable, or `output` is of another run.
    """
    if form not in ("json", "parquet"):
        raise ValueError(f"form must be 'json' or 'parquet', got {form!r}")
    dataset = source if isinstance(source, Dataset) else _read(source)
    _check_columns(dataset, id_column)
    run = Run.open(output, engine, params, chat or ChatSettings())
    dataset.context.checkpoint_config = None
    check_ids(dataset.select_columns([id_column]).iter_batches(batch_format="pyarrow"), id_column)
    run.begin()
    dataset.context.max_consecutive_actor_init_deaths = _START_DEATHS
    dataset.context.checkpoint_config = CheckpointConfig(
        id_column, run.checkpoint, delete_checkpoint_on_success=False
    )
    answered = answer_rows(dataset, engine, params, id_column=id_column, chat=chat, **stage)
    write = answered.write_json if form == "json" else answered.write_parquet
    write(run.output, min_rows_per_file=rows_per_file)


def check_ids(batches: Any, column: str) -> None:
    """Raises ValueError unless all ids are text or integers, and no two are equal."""
    tables = [batch for batch in batches if batch.num_rows]
    if not tables:
        return
    ids = pa.concat_tables(tables, promote_options="permissive")[column]
    kind = ids.type
    if not (
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ):
        raise ValueError(f"column {column!r} must have text or integers, it has {kind}")
    if ids.null_count:
        raise ValueError(f"column {column!r} must tell rows apart; {ids.null_count} have no id")
    counts = pc.value_counts(ids)
    often = pc.filter(counts, pc.greater(counts.field("counts"), 1))
    if len(often):
        raise ValueError(
            f"column {column!r} must tell rows apart; {often[0]['values'].as_py()!r} is there "
            f"{often[0]['counts'].as_py()} times"
        )


def _read(source: str | Sequence[str]) -> Dataset:
    paths = [source] if isinstance(source, str) else list(source)
    if not paths:
        raise ValueError("source names no file")
    is_parquet = paths[0].endswith(".parquet")
    return (ray.data.read_parquet if is_parquet else ray.data.read_json)(paths)


def _check_columns(dataset: Dataset, id_column: str) -> None:
    columns = dataset.columns() or []
    if id_column not in columns:
        raise ValueError(f"there is no column {id_column!r} to tell rows apart, only {columns}")
    if taken := sorted(set(ANSWER.names) & set(columns)):
        raise ValueError(f"the rows have columns {taken}, which answers bring; rename them first")
