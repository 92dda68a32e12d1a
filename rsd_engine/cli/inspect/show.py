"""Prints an inspection for people: the models side by side, then the verdict, line by line."""

from __future__ import annotations

from collections.abc import Iterable

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from rsd_engine.cli.show import make_console, visible
from rsd_engine.engine.inspect.facts import ModelFacts, NamedId
from rsd_engine.engine.inspect.inspection import Inspection
from rsd_engine.engine.inspect.memory import STEP_TOKENS, Machine, MemoryFit
from rsd_engine.engine.memory_report import megabytes
from rsd_engine.models.rope_config import RopeConfig
from rsd_kernels.state.enums import Role

_HEADS = {
    "ValueHead": "one value per step, through a sigmoid",
    "TwoClassHead": "two classes, good and bad",
}


def print_inspection(found: Inspection) -> None:
    """Prints the models, how many texts fit, and what is in order or not."""
    sources = [(_heading(m.role) if m.facts else "error", m.source) for m in found.models]
    typer.echo("\n".join(f"{name:<7} {visible(source)}" for name, source in sources))
    readable = [(_heading(m.role), m.facts) for m in found.models if m.facts]
    if readable:
        _print_table(_facts(readable, found.machine))
    for _, facts in readable:
        if facts.prm:
            typer.echo("\n".join(_prm_lines(facts)) + "\n")
    if found.memory and found.memory.full_requests:
        _print_table(_lengths(found.memory))
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


def _facts(models: list[tuple[str, ModelFacts]], machine: Machine) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading, _ in models:
        table.add_column(heading, overflow="fold")
    columns = [dict(_rows(facts, machine)) for _, facts in models]
    for label in columns[0]:
        table.add_row(label, *(Text(visible(column[label])) for column in columns))
    return table


def _rows(model: ModelFacts, machine: Machine) -> list[tuple[str, str]]:
    config, storage = model.config, model.storage
    files = "file" if storage.num_files == 1 else "files"
    on_disk = f", {storage.num_files} {files}, {megabytes(storage.num_bytes)}"
    special = (f"{name} {token}" for name, token in model.special_tokens.items())
    return [
        ("stored as", storage.format + (on_disk if storage.num_files else "")),
        ("dtype", str(config.dtype).removeprefix("torch.")),
        ("architecture", config.architecture),
        ("kind", f"PRM, {model.prm.family}" if model.prm else f"writer, {model.family}"),
        ("parameters", _count(config.num_parameters)),
        ("layers", str(config.num_layers)),
        ("hidden, MLP size", f"{config.hidden_size}, {config.intermediate_size}"),
        ("heads", f"{config.num_q_heads}, {config.num_kv_heads} for K and V"),
        ("head size", str(config.head_dim)),
        ("context", f"{config.max_position_embeddings} tokens"),
        ("rope", _rope(config.rope)),
        ("vocabulary", f"{config.vocab_size} rows"),
        ("tokenizer", f"{model.vocabulary.num_tokens} tokens"),
        ("chat template", "yes" if model.has_chat_template else "no"),
        ("stop tokens", _listed(model.stop_tokens)),
        ("special tokens", "\n".join(special) or "none"),
        ("weights", megabytes(machine.weight_bytes(model))),
        ("KV of a token", f"{machine.kv_bytes_per_token(model)} bytes"),
    ]


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


def _prm_lines(model: ModelFacts) -> list[str]:
    assert model.prm is not None
    separator = ", ".join(map(str, model.prm.separator))
    return [
        f"The PRM reads  {visible(repr(model.prm.prompt))}",
        f"then each step with its separator {visible(separator)}",
        f"Its head       {_HEADS.get(model.prm.head, model.prm.head)}; a step is kept from "
        f"{model.prm.threshold:g}",
    ]


def _lengths(memory: MemoryFit) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("Texts of")
    table.add_column("fit at once", justify="right")
    for length in memory.lengths:
        at_once = memory.estimate.sequences(length, STEP_TOKENS)
        table.add_row(f"{length} tokens", str(at_once))
    return table


def _summary(found: Inspection) -> str:
    if problems := len(found.problems):
        return "1 problem." if problems == 1 else f"{problems} problems."
    return "They fit together." if len(found.models) > 1 else "It can be used."


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"
