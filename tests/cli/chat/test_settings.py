"""Settings as they are typed, and those that a chat begins with."""

from __future__ import annotations

import pytest

from rsd_engine import Clip, Constant, Logistic, Sigmoidal, Threshold
from rsd_engine.cli.chat.settings import first_settings, parse_setting
from rsd_engine.cli.errors import UsageError
from rsd_engine.steps.policies import Policy, parse_policy


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("temperature", "0.5", ("temperature", 0.5)),
        ("seed", "null", ("seed", None)),
        ("ignore-eos", "true", ("ignore_eos", True)),
        ("mode", "target", ("mode", "target")),
        ("stop", r'"\n\n"', ("stop", "\n\n")),
        ("stop", "the end", ("stop", "the end")),
        ("stop", '["a", "b"]', ("stop", ["a", "b"])),
        ("policy", "constant:0.5", ("policy", "constant:0.5")),
        ("threshold", "0.5", ("policy", "threshold:0.5")),
    ],
)
def test_values_are_json_or_text(name: str, text: str, expected: tuple[str, object]) -> None:
    assert parse_setting(name, text) == expected


@pytest.mark.parametrize(
    "policy", [Constant(0.25), Threshold(0.1), Clip(), Sigmoidal(), Logistic(1e-5, 0.123456789)]
)
def test_policies_as_text(policy: Policy) -> None:
    assert parse_policy(policy.text) == policy


def test_the_command_line_counts_more_than_the_config() -> None:
    config = {"policy": Threshold(0.5), "temperature": 0.1, "top_k": 3}
    found = first_settings(config, ["threshold=0.75", "temperature = 0.2", "temperature=0.3"])
    assert found == {"policy": "threshold:0.75", "temperature": 0.3, "top_k": 3}
    assert first_settings(config, [])["policy"] == "threshold:0.5"


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("temperature", "--set temperature: it must be NAME=VALUE"),
        ("temperature=-1", "--set temperature=-1: temperature must be 0 or in [1e-6, 1e6], got -1"),
        ("logprobs=1", "logprobs cannot be set"),
    ],
)
def test_bad_settings(assignment: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        first_settings({}, [assignment])
    assert said in str(error.value)
    with pytest.raises(UsageError, match="n cannot be set"):
        first_settings({"n": 2}, [])
