"""What `docs/ray.md` shows is allowed, and its programs run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from rsd_engine.integrations.ray.arguments import ServeArguments
from rsd_engine.integrations.ray.rows import ANSWER
from rsd_engine.integrations.ray.serving import NAME, app_builder
from tests.docs.documents import document
from tests.integrations.ray.cluster import ray_cluster

DOCUMENT = document("docs/ray.md")
SERVE, CLUSTER = (yaml.safe_load(block) for block in DOCUMENT.blocks("yaml"))
BUILDER = f"{app_builder.__module__}:{app_builder.__name__}"


def test_the_file_for_serve_deploy() -> None:
    ServeDeploySchema.model_validate(SERVE)
    [application] = SERVE["applications"]
    assert application["import_path"] == BUILDER
    assert [deployment["name"] for deployment in application["deployments"]] == [NAME]
    app_builder(application["args"])


def test_the_command_for_serve_run() -> None:
    [command] = [block for block in DOCUMENT.blocks("bash") if block.startswith("serve run")]
    path, *arguments = command.split()[2:]
    assert path == BUILDER
    ServeArguments.read(dict(argument.split("=") for argument in arguments))


def test_the_cluster_file() -> None:
    validate_config(prepare_config(CLUSTER))
    assert CLUSTER["head_node_type"] in CLUSTER["available_node_types"]


def test_every_column_of_an_answer_is_there() -> None:
    rows = DOCUMENT.table_after("The answer adds columns")
    told = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(told) == sorted(ANSWER.names)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All blocks, one after the other; the cluster is there already."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with ray_cluster(num_cpus=4):
        monkeypatch.setattr("ray.init", lambda **options: None)
        for number, code in enumerate(DOCUMENT.blocks("python")):
            exec(compile(code, f"docs/ray.md, block {number}", "exec"), names)
    lines = [line for file in Path("answers").glob("*.json") for line in file.open()]
    assert sorted(json.loads(line)["id"] for line in lines) == list(range(40))
    assert int(capsys.readouterr().out.split()[-1]) > 30
