"""TOML defaults: which keys there are, and that the command line wins."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from rsd_engine import Clip, Engine
from rsd_engine.cli import config_file
from rsd_engine.cli.config_file import read_config
from rsd_engine.cli.demo.command import demo
from rsd_engine.cli.errors import UsageError
from tests.cli.conftest import Rsd
from tests.tiny_models import TinyModels


def config(folder: Path, text: str) -> Path:
    path = folder / "rsd.toml"
    path.write_text(text)
    return path


def test_engine_keys_are_those_of_the_engine() -> None:
    assert set(config_file.ENGINE) == set(inspect.signature(Engine).parameters)


def test_demo_keys_are_the_options_of_the_demo() -> None:
    assert set(config_file.DEMO) == set(inspect.signature(demo).parameters) - {"config", "html"}


def test_values_are_read(tmp_path: Path) -> None:
    text = """
        [engine]
        kv_cache_memory_bytes = "2MiB"
        policy = "clip"
        step_delimiters = "\\n"
        [sampling]
        stop = ["x"]
        policy = "clip"
        [demo]
        threshold = 1
    """
    found = read_config(config(tmp_path, text))
    assert found.engine == {
        "kv_cache_memory_bytes": 2**21, "policy": Clip(), "step_delimiters": ["\n"],
    }  # fmt: skip
    assert found.sampling == {"stop": ["x"], "policy": Clip()}
    assert found.demo == {"threshold": 1}
    assert read_config(None).engine == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[engine]\ndarft = 'x'", r"unknown keys \['darft'\] in \[engine\]; allowed: .*'draft'"),
        ("[engine]\nmax_num_seqs = '4'", "engine.max_num_seqs must be an integer, got '4'"),
        ("[engine]\npolicy = 'clap'", "policy = 'clap': unknown"),
        ("[sampling]\ntemp = 1", r"unknown sampling parameters \['temp'\]; allowed: .*temperature"),
        ("[sampling]\ntop_p = 2", "top_p must be in"),
        ("[sampling]\nstop = 5", r"\[sampling\]: stop must be"),
        ("[demo]\nproblems = 'all'", "demo.problems must be an integer"),
        ("[generate]\nchat = 1", "generate.chat must be true or false"),
        ("[engin]\n", r"unknown table or key 'engin'; allowed tables: \['engine'"),
        ("draft = 'x'", "unknown table or key 'draft'"),
        ("draft", "rsd.toml is not TOML"),
    ],
)
def test_bad_files_are_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_config(config(tmp_path, text))


def test_missing_file_is_wrong_use(rsd: Rsd, tmp_path: Path) -> None:
    result = rsd("generate", "hi", "--config", tmp_path / "none.toml")
    assert result.exit_code == 2
    assert "cannot read the config file" in result.stderr


def test_command_line_wins(rsd: Rsd, tmp_path: Path, tiny: TinyModels) -> None:
    text = f"""
        [engine]
        target = '{tiny.target}'
        [sampling]
        max_tokens = 3
        ignore_eos = true
        [generate]
        json = true
    """
    path = config(tmp_path, text)
    counts = []
    for more in ([], ["--max-tokens=5"]):
        result = rsd("generate", "hi", "--config", path, *more)
        assert result.exit_code == 0
        counts.append(len(json.loads(result.stdout)["outputs"][0]["token_ids"]))
    assert counts == [3, 5]
