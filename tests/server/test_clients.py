"""Programs and commands of the docs, as they stand, against `rsd serve` in another process.

Each program runs where its client is installed: `pip install` as `docs/clients.md` says.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rsd_engine import Engine, SamplingParams, Threshold
from tests.docs.documents import document
from tests.server.served import MODEL
from tests.server.test_chat import events_of

pytestmark = pytest.mark.slow

CLIENTS, SERVING = document("docs/clients.md"), document("docs/serving.md")
ADDRESS = "http://127.0.0.1:8000"  # in the docs
PACKAGES = ("openai", "langchain_openai", "litellm", "llama_index.llms", "inspect_ai")
SECONDS = 240
# Clients must not look for anything on the network.
QUIET = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "INSPECT_DISABLE_MODEL_API_CHECK": "1",
}


def programs(package: str) -> list[str]:
    return [code for code in CLIENTS.blocks("python") if imports(code, package)]


def imports(code: str, package: str) -> bool:
    return re.search(rf"^(from|import) {re.escape(package)}\b", code, re.MULTILINE) is not None


def is_installed(package: str) -> bool:
    top, _, _ = package.partition(".")
    return importlib.util.find_spec(top) is not None


def answer_of(engine: Engine, threshold: float) -> str:
    params = SamplingParams(temperature=0.0, max_tokens=None, policy=Threshold(threshold))
    messages = [{"role": "user", "content": "What is 17 * 23?"}]
    return engine.chat(messages, params, use_tqdm=False)[0].outputs[0].text


def test_every_program_has_its_client() -> None:
    found = [code for package in PACKAGES for code in programs(package)]
    assert sorted(found) == sorted(CLIENTS.blocks("python"))
    assert all(programs(package) for package in PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_programs(served: str, engine: Engine, tmp_path: Path, package: str) -> None:
    if not is_installed(package):
        pytest.skip(f"{package} is not installed")
    wanted = answer_of(engine, 0.8)
    for code in programs(package):
        assert ADDRESS in code
        done = subprocess.run(
            [sys.executable, "-c", code.replace(ADDRESS, served)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            cwd=tmp_path,
            env={**os.environ, **QUIET},
        )
        assert done.returncode == 0, done.stderr
        shown = re.sub(r"\[(kept|rejected), by the (draft|target)\]\n", "", done.stdout)
        assert wanted in shown


def test_curl_as_printed(served: str, engine: Engine, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    [command] = [line for line in SERVING.text.splitlines() if line.startswith("curl ")]
    [body] = [block for block in SERVING.blocks("json") if '"stream"' in block]
    assert json.loads(body)["model"] == MODEL
    (tmp_path / "request.json").write_text(body)
    words = shlex.split(command.replace(ADDRESS, served))
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    chunks = events_of(done.stdout)
    texts = [c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"]]
    assert "".join(texts) == answer_of(engine, 0.8)
    assert any("rsd" in chunk for chunk in chunks)
