"""Prints a plan: tables for people, or one line of JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import typer

from rsd_engine.cli.plan.run import Plan
from rsd_engine.engine.memory_estimate import by_role_name
from rsd_engine.engine.memory_fit import CPU_SHARE
from rsd_engine.memory.available import megabytes
from rsd_kernels.state.enums import Role


def print_plan(plan: Plan) -> None:
    """Prints models and load, speeds, where RSD pays, operations and memory."""
    for block in (_head(plan), _speeds(plan), _worth(plan), _memory(plan)):
        typer.echo("\n".join(block) + "\n")


def print_json(plan: Plan) -> None:
    typer.echo(json.dumps(rounded(to_dict(plan))))


def to_dict(plan: Plan) -> dict[str, Any]:
    """JSON-ready values, in seconds, bytes and tokens per second."""
    setting = plan.setting
    return {
        "gpu": asdict(setting.device),
        "slots": setting.slots,
        "context": setting.context,
        "step_tokens": setting.step_tokens,
        "acceptance": plan.options.acceptance,
        "guess_acceptance": plan.options.guess_acceptance,
        "models": {
            role.name.lower(): {
                "source": plan.options.sources[role],
                "weights_in": plan.held_in[role],
            }
            | asdict(shape)
            for role, shape in plan.shapes.items()
        },
        "pass_seconds": {
            name: {"token": token, "step": step}
            for name, (token, step) in by_role_name(plan.pass_seconds).items()
        },
        "tokens_per_second": {
            "target": plan.target_alone,
            "draft": plan.draft_alone,
            "speculation": {str(a): asdict(found) for a, found in plan.speculation.items()},
            "rsd": {str(a): rate for a, rate in plan.rsd.items()},
            "rsd_guessed": plan.rsd_guessed,
        },
        "step_seconds": asdict(plan.round) | {"total": plan.round.total},
        "rewrite": asdict(plan.rewrite),
        "break_even": {str(name): share for name, share in plan.break_even.items()},
        "flops_ratio": plan.flops_ratio,
        "memory": plan.memory.to_dict(plan.lengths, setting.step_tokens),
    }


def _head(plan: Plan) -> list[str]:
    setting = plan.setting
    rows = [_cpu(plan) if plan.options.on_cpu else _gpu(plan)]
    for role, shape in plan.shapes.items():
        rows.append(
            f"{role.name.lower():<7} {plan.options.sources[role]}: "
            f"{_billions(shape.num_parameters)} parameters ({megabytes(shape.weight_bytes)}), "
            f"{shape.kv_bytes_per_token} bytes of KV a token"
        )
    quantised = [f"{role.name.lower()} {name}" for role, name in plan.held_in.items() if name]
    if quantised:
        rows.append(f"weights {', '.join(quantised)}")
    rows.append(
        f"work    {_count(setting.slots, 'sequence')} of {setting.context} tokens, steps of "
        f"{_count(setting.step_tokens, 'token')}"
    )
    return rows


def _gpu(plan: Plan) -> str:
    device, options = plan.setting.device, plan.options
    origin = "with your figures" if options.is_measured else "published figures"
    return (
        f"GPU     {device.name}: {device.bandwidth / 1e12:.2f} TB/s, "
        f"{device.flops / 1e12:.0f} TFLOP/s, {device.memory_bytes / 1e9:.0f} GB ({origin})"
    )


def _cpu(plan: Plan) -> str:
    device, options = plan.setting.device, plan.options
    origin = "with your figures" if options.is_measured else "measured"
    return (
        f"CPU     {device.name}: {device.bandwidth / 1e9:.1f} GB/s, "
        f"{device.flops / 1e9:.0f} GFLOP/s, {device.memory_bytes / 1e9:.1f} GB ({origin})"
    )


def _speeds(plan: Plan) -> list[str]:
    setting = plan.setting
    per_step = setting.slots * setting.step_tokens
    rates = [("target alone", plan.target_alone)]
    rates += [
        (f"speculation, {_percent(a)} of tokens kept, {found.draft_tokens} a time",
         found.tokens_per_second)
        for a, found in plan.speculation.items()
    ]  # fmt: skip
    rates += [(f"RSD, {_percent(a)} of steps kept", rate) for a, rate in plan.rsd.items()]
    shares = (_percent(plan.options.acceptance), _percent(plan.options.guess_acceptance))
    rates.append((f"RSD, {shares[0]} of steps kept, {shares[1]} of guesses", plan.rsd_guessed))
    rates.append(("draft alone", plan.draft_alone))
    rows = [
        (name, _rate(rate), _ms(per_step / rate), f"{rate / plan.target_alone:.2f}")
        for name, rate in rates
    ]
    parts = ", ".join(
        f"{label} {_ms(seconds)}"
        for label, seconds in (
            ("draft", plan.round.draft), ("score", plan.round.score),
            ("catch up", plan.round.catch_up), ("rewrite", plan.round.rewrite),
        )
    )  # fmt: skip
    rewrite, alone = plan.rewrite, per_step / plan.target_alone
    return [
        *table(("At best", "tokens/s", "ms a step", "x target"), rows),
        "Roofline: weights and KV read once, products at full rate. Nothing is faster.",
        f"A step at {shares[0]} kept, in ms: {parts}.",
        f"A rewrite at {shares[1]} of guesses right, in ms: {_ms(rewrite.seconds)} in "
        f"{rewrite.target_passes:.1f} passes, not {_ms(alone)} in {setting.step_tokens}.",
    ]


def _worth(plan: Plan) -> list[str]:
    goals = [("the target alone", plan.break_even["target alone"])]
    goals += [
        (f"speculation at {_percent(a)} of tokens kept", plan.break_even[a])
        for a in plan.speculation
    ]
    rows = [
        (name, "never" if share is None else f"{_percent(math.ceil(1e2 * share) / 1e2)}")
        for name, share in goals
    ]
    ratio = plan.flops_ratio
    return [
        *table(("RSD is as fast as", "from steps kept"), rows),
        f"Operations at {_percent(plan.options.acceptance)} kept: the target alone needs "
        f"{ratio['generated']:.2f} times",
        f"those of RSD for tokens written and scored, {ratio['all']:.2f} times for all tokens.",
    ]


def _memory(plan: Plan) -> list[str]:
    memory, layout = plan.memory, plan.memory.layout
    weights = sum(memory.weights.values())
    rows = [
        f"Memory  {megabytes(memory.available)} to use: {megabytes(weights)} of weights, "
        f"{megabytes(memory.activations)} of activations,",
        f"        {megabytes(memory.state)} of state, {megabytes(memory.tables)} of tables, "
        f"{megabytes(max(0, memory.pool))} of pages",
    ]
    if plan.options.on_cpu:
        rows.append(f"        {1 - CPU_SHARE:.0%} of what the models leave stays free")
    if memory.pool < layout.page_bytes:
        rows.append("The models do not fit: no memory is left for keys and values.")
        return rows
    tokens = ", ".join(
        f"{layout.tokens_per_page[role]} {role.name.lower()}"
        for role in (Role.DRAFT, Role.TARGET, Role.PRM)
    )
    rows.append(f"        {layout.page_bytes} bytes a page, for {tokens} tokens")
    step = plan.setting.step_tokens
    fits = [
        (f"{n} tokens", str(memory.sequences(n, step)), f"{1e2 * memory.page_waste(n, step):.1f} %")
        for n in plan.lengths
    ]
    return [*rows, *table(("Sequences of", "fit at once", "of pages empty"), fits)]


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; all but the first column are numbers."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        numbers = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        return "  ".join([row[0].ljust(widths[0]), *numbers[1:]]).rstrip()

    return [line(row) for row in (headers, *rows)]


def _rate(rate: float) -> str:
    """Tokens per second; of few, to three digits."""
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


def _ms(seconds: float) -> str:
    """Milliseconds, from a thousand on without a fraction."""
    return f"{1e3 * seconds:.1f}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def _percent(share: float) -> str:
    return f"{1e2 * share:.4g} %"


def _count(number: int, name: str) -> str:
    return f"{number} {name}" + ("" if number == 1 else "s")


def _billions(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def rounded(value: Any) -> Any:
    """Floats to six significant digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
