"""Prints an inspection for people: the models side by side, then the verdict, line by line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import typer
from rich import box
from rich.table import Table
from rich.text import Text

from rsd_engine.cli.show import make_console, visible
from rsd_engine.engine.inspect.facts import ModelFacts, NamedId, PrmFacts
from rsd_engine.engine.inspect.inspection import Inspection
from rsd_engine.engine.inspect.memory import LoadedModel, Machine, at_once, full_requests
from rsd_engine.engine.inspect.weights import FormatShare
from rsd_engine.engine.memory_fit import MemoryFit
from rsd_engine.memory.available import megabytes
from rsd_engine.models.checkpoints.storage import Storage
from rsd_engine.models.rope_config import RopeConfig
from rsd_kernels.state.enums import Role

_HEADS = {
    "ValueHead": "one value per step, through a sigmoid",
    "TwoClassHead": "two classes, good and bad",
    "EnsembleHead": "the mean of an ensemble of heads",
}


def print_inspection(found: Inspection) -> None:
    """Prints the models, how many texts fit, and what is in order or not."""
    sources = [("error" if m.error else _heading(m.role), m.source) for m in found.models]
    typer.echo("\n".join(f"{name:<7} {visible(source)}" for name, source in sources) + "\n")
    columns = [
        (_heading(m.role), _rows(m.facts, m.loaded, found.machine))
        for m in found.models
        if m.facts and m.loaded
    ]
    if columns:
        _print_table(_facts(columns))
    for model in found.models:
        if model.facts and model.facts.prm:
            typer.echo("\n".join(_prm_lines(model.facts.prm)) + "\n")
    if found.fit and full_requests(found.fit) < found.machine.max_num_seqs:
        _print_table(_lengths(found.fit, found.machine))
    for finding in found.findings:
        verdict = "problem" if finding.is_problem else "ok"
        typer.echo(f"{verdict}: {finding.subject}: {visible(finding.text)}")
    typer.echo(f"\n{_summary(found)}")


def _heading(role: Role | None) -> str:
    return "unused" if role is None else role.name.lower()


def _print_table(table: Table) -> None:
    console = make_console()
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    typer.echo("\n".join(line for line in lines if line) + "\n")


def _facts(columns: Sequence[tuple[str, list[tuple[str, str]]]]) -> Table:
    """A table of the models' facts, with a column for each."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    table.add_column("", no_wrap=True)
    for heading, _ in columns:
        table.add_column(heading, overflow="fold")
    for cells in zip(*(rows for _, rows in columns), strict=True):
        table.add_row(cells[0][0], *(Text(visible(text)) for _, text in cells))
    return table


def _rows(model: ModelFacts, loaded: LoadedModel, machine: Machine) -> list[tuple[str, str]]:
    config, storage, memory = model.config, model.storage, loaded.memory
    kv = config.kv_shape(memory.dtype).bytes_per_token
    reads = [f"{share.format} {megabytes(share.read_bytes)}" for share in loaded.shares]
    special = (f"{name} {token}" for name, token in model.special_tokens.items())
    return [
        ("kind", f"{'PRM' if model.prm else 'writer'} ({model.family})"),
        ("architecture", config.architecture),
        ("stored as", storage.format),
        ("on disk", _on_disk(storage)),
        ("parameters", _count(config.num_parameters)),
        ("layers", str(config.num_layers)),
        ("hidden, MLP size", f"{config.hidden_size}, {config.intermediate_size}"),
        ("heads", f"{config.num_q_heads}, {config.num_kv_heads} for K and V"),
        ("head size", str(config.head_dim)),
        ("context", f"{config.max_position_embeddings} tokens"),
        ("rope", "\n".join(map(_rope, model.ropes))),
        ("vocabulary", f"{config.vocab_size} rows"),
        ("tokenizer", f"{model.vocabulary.num_tokens} tokens"),
        ("chat template", "yes" if model.has_chat_template else "no"),
        ("stop tokens", _listed(model.stop_tokens)),
        ("special tokens", "\n".join(special) or "none"),
        ("in memory", megabytes(memory.weights)),
        ("weights held in", _held(loaded.shares)),
        ("a pass reads", "\n".join(reads)),
        ("on a GPU" if machine.device.type == "cpu" else "on a CPU", _held(loaded.elsewhere)),
        ("computes in", _short(memory.dtype)),
        ("KV of a token", f"{kv} bytes"),
    ]


def _held(shares: Sequence[FormatShare]) -> str:
    """One line for a format, whatever it was expanded from."""
    totals: dict[tuple[str, bool], int] = {}
    for share in shares:
        key = (share.format, share.expanded_from is not None)
        totals[key] = totals.get(key, 0) + share.num_bytes
    return "\n".join(
        f"{name} {megabytes(size)}" + (", expanded" if expanded else "")
        for (name, expanded), size in totals.items()
    )


def _on_disk(storage: Storage) -> str:
    if not storage.num_files or storage.num_bytes is None:
        return "not known" if storage.num_files is None else "not here"
    files = f" in {storage.num_files} files" if storage.num_files > 1 else ""
    return megabytes(storage.num_bytes) + files


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rope(rope: RopeConfig) -> str:
    base = f"theta {rope.theta:g}"
    if rope.frequency_factors:
        return f"{base}, scaled by factors"
    if rope.type == "default":
        return base
    original = f" of {rope.original_max_position}" if rope.original_max_position else ""
    return f"{base}, {rope.type} x {rope.factor:g}{original}"


def _listed(tokens: Iterable[NamedId]) -> str:
    return "\n".join(map(str, tokens)) or "none"


def _prm_lines(prm: PrmFacts) -> list[str]:
    separator = ", ".join(map(str, prm.separator))
    low, high = prm.reward_range
    return [
        f"The PRM is a {prm.family}. It reads",
        f"  {visible(repr(prm.prompt))}",
        f"then every step with the separator {visible(separator)}.",
        f"Its head: {_HEADS.get(prm.head, prm.head)}. Rewards go from {low:g} to {high:g}; "
        f"a step is kept from {prm.threshold:g} on.",
    ]


def _lengths(fit: MemoryFit, machine: Machine) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    table.add_column("Texts of")
    table.add_column("fit at once", justify="right")
    for length, count in at_once(fit, machine).items():
        table.add_row(f"{length} tokens", str(count))
    return table


def _summary(found: Inspection) -> str:
    if problems := len(found.problems):
        return "1 problem." if problems == 1 else f"{problems} problems."
    return "They fit together." if len(found.models) == len(Role) else "No problem."


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"
