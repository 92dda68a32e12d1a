"""What `docs/usage.md` shows is what happens."""

from __future__ import annotations

import dataclasses
import logging
import re
import shlex
from typing import Any

import pytest

from rsd_engine import SamplingParams
from rsd_engine.models.registry import reward_families, reward_family
from rsd_engine.steps.policies import parse_policy
from tests.docs.conftest import Shell
from tests.docs.documents import document

USAGE = document("docs/usage.md")


def test_the_programs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks, one after the other, in one process."""
    monkeypatch.setattr(logging.getLogger("rsd_engine"), "level", logging.WARNING)
    names: dict[str, Any] = {}
    for number, code in enumerate(USAGE.blocks("python")):
        exec(compile(code, f"docs/usage.md, block {number}", "exec"), names)
    assert r"\boxed{18}" in capsys.readouterr().out


def test_the_plan(shell: Shell) -> None:
    command, _, block = USAGE.text.partition("$ rsd plan ")[2].partition("\n")
    shown = block.partition("\n```")[0]
    assert shell.rsd("plan", *shlex.split(command)).strip() == shown.strip()


def test_every_sampling_parameter_is_there() -> None:
    rows = USAGE.table_after("## Sampling parameters")
    told = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(told) == sorted(field.name for field in dataclasses.fields(SamplingParams))


def test_policies_as_written_on_a_command_line() -> None:
    for row in USAGE.table_after("## Policies"):
        name, text = row[0].strip("`"), row[1].strip("`")
        for letter, number in (("alpha", "9"), ("d", "0.7"), ("p", "0.5")):
            text = re.sub(rf":{letter}\b", f":{number}", text)
        assert name.startswith(type(parse_policy(text)).__name__)


def test_the_families_of_reward_models() -> None:
    """Name, architectures, range and threshold of every family are those of the code."""
    rows = USAGE.table_after("### Reward models")
    assert {row[0].split("`")[1].lower() for row in rows} == set(reward_families())
    for name, architectures, _, allowed, threshold, _ in rows:
        family = reward_family(name.split("`")[1])
        low, high = (float(number) for number in allowed.split(" to "))
        assert (low, high) == family.reward_range
        assert float(threshold.split(",")[0]) == family.threshold
        for found in re.findall(r"`([^`]*For[^`]*)`", architectures):
            assert any(known.endswith(found.lstrip(".")) for known in family.architectures)
