"""URLs in place of models, on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Rsd
from tests.tiny_models import TinyModels

NOBODY = "http://127.0.0.1:9/v1?max_retries=0"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("generate", "x"), "target: http://127.0.0.1:9/v1 cannot be reached"),
        (("inspect",), "is on a server, and this needs its files; give a folder"),
        (("plan", "--gpu=h100"), "is on a server, and this needs its files; give a folder"),
    ],
)
def test_a_target_on_a_server(
    command: tuple[str, ...], said: str, tiny: TinyModels, rsd: Rsd
) -> None:
    name, *rest = command
    models = [f"--draft={tiny.draft}", f"--target={NOBODY}", f"--prm={tiny.prm}"]
    result = rsd(name, *models, *rest)
    assert result.exit_code == 1
    assert said in result.output


def test_a_config_file_may_name_one(tiny: TinyModels, rsd: Rsd, tmp_path: Path) -> None:
    config = tmp_path / "rsd.toml"
    config.write_text(f'[engine]\ndraft = "{tiny.draft}"\nprm = "{NOBODY}"\n')
    result = rsd("generate", f"--config={config}", f"--target={tiny.target}", "x")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(
        "error: prm: http://127.0.0.1:9/v1 cannot be reached"
    )
