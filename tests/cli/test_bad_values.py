"""Values that a user may give: each is refused in one line, before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rsd_engine.demo import ROLES, checkpoint_dir
from tests.cli.conftest import Rsd

NINES = "9" * 400
MODELS = [f"--{role}={checkpoint_dir(role)}" for role in ROLES]
NESTED = "[" * 100_000

CONFIGS = [
    "a = " + "[" * 5000,
    "a = " + "9" * 6000,
    "\0",
    "\xff",
    "[engine]\nmax_num_seqs = 1.5",
    "[engine]\nmax_num_seqs = inf",
    "[engine]\ngpu_memory_utilization = " + NINES,
    "[engine]\nkv_cache_memory_bytes = " + NINES,
    "[engine]\nkv_cache_memory_bytes = 0x" + "f" * 6000,
    f"[engine]\nkv_cache_memory_bytes = '{NINES}GiB'",
    f"[engine]\nhf_overrides = '{NESTED}'",
    "[engine]\npolicy = 'threshold:1:2:3'",
    "[sampling]\ntemperature = 0x" + "f" * 6000,
    "[sampling]\nlogit_bias = 5",
    "[generate]\nchat_template = '/'",
    "[generate]\ntools = '/dev/zero'",
    "[demo]\nthreshold = nan\n[engine]\ntarget = 5",
    "engine = 5",
]


@pytest.mark.parametrize("text", CONFIGS)
def test_a_config_file(text: str, rsd: Rsd, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_bytes(text.encode("latin-1"))
    expect_one_line(rsd, ["generate", *MODELS, "--config", str(config), "x"], usage=True)


@pytest.mark.parametrize("path", ["/", "/dev/zero", "~no_such_user/c.toml", "x" * 300, "no\nfile"])
@pytest.mark.parametrize("option", ["--config", "--chat-template", "--tools", "-i"])
def test_a_path(option: str, path: str, rsd: Rsd) -> None:
    prompt = [] if option == "-i" else ["x"]
    expect_one_line(rsd, ["generate", *MODELS, option, path, *prompt], usage=True)


@pytest.mark.parametrize(
    "args",
    [
        ["generate", "--kv-cache-memory", NINES],
        ["generate", "--kv-cache-memory", NINES + ".5GiB"],
        ["generate", "--max-num-seqs", NINES],
        ["generate", "--max-model-len", NINES],
        ["generate", "--temperature", NINES],
        ["generate", "--seed", NINES],
        ["generate", "--gpu-memory-utilization", "nan"],
        ["generate", "--hf-overrides", NESTED],
        ["generate", "--hf-overrides", '{"draft": {"hidden_size": ' + NINES + "}}"],
        ["generate", "--logit-bias", '{"1": 1e999}'],
        ["generate", "--tools", __file__],
        ["generate", "--device", "cuda:" + NINES],
        ["generate", "--draft", "two\nlines"],
        ["generate", "--draft", "\udcff"],
        ["inspect", "--memory", NINES],
        ["inspect", "--max-num-seqs", NINES],
        ["inspect", "--device", "cuda:" + NINES],
        ["plan", "--gpu", "h100", "--memory", NINES],
        ["plan", "--gpu", "h100", "--context", "100", "--bandwidth", NINES],
        ["plan", "--gpu", "h100", "--context", "100", "--gpu-memory-utilization", "nan"],
        ["plan", "--gpu", "two\nlines"],
        ["profile", "--max-num-seqs", NINES],
        ["profile", "--kv-cache-memory", "1"],
        ["profile", "--trace", "/no/such/folder/trace.json"],
        ["profile", "--trace", "/"],
    ],
)
def test_an_option(args: list[str], rsd: Rsd) -> None:
    command, *options = args
    prompt = ["x"] if command == "generate" else []
    expect_one_line(rsd, [command, *MODELS, *options, *prompt])


@pytest.mark.parametrize("args", [["demo", NINES], ["plan", "--slots", NINES], ["demo", "x"]])
def test_wrong_numbers_show_the_usage(args: list[str], rsd: Rsd) -> None:
    result = rsd(*args)
    assert result.exit_code == 2 and "Invalid value" in result.stderr


def expect_one_line(rsd: Rsd, args: Sequence[str], *, usage: bool = False) -> None:
    result = rsd(*args)
    assert result.exit_code in ((2,) if usage else (1, 2))
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ") and "--verbose" not in line  # no fault of the program
