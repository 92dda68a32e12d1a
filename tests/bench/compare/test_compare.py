"""The comparison on small shapes: what it prints and the JSON line; other engines as children."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.compare import command, decode, decode_part, rsd_contenders, rsd_part
from bench.compare.peer_process import NotAvailable, Peer
from bench.compare.rsd_contenders import ASSISTED, PAPER, RSD, TARGET
from bench.lib.timing import Timing
from tests.tiny_models import make_tiny_models

CHILD = """
import json, sys
settings = json.loads(sys.argv[1])
if settings["broken"]:
    sys.exit("no engine here")
print(json.dumps({"version": "7"}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    made = [ids[-1:] * request["num_tokens"] for ids in request["prompts"]]
    print(json.dumps({"tokens": made}), flush=True)
"""


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def test_rsd_part(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "RSD_BATCHES", (1, 2))
    monkeypatch.setattr(rsd_contenders, "MAX_TOKENS", 20)
    options = ["--problems", "2", "--runs", "1", "--threads", "1", "--seed", "5"]
    command.main(["--skip", "decode", *options])
    found = last_json(capsys)
    for name in ("batch1", "batch2"):
        got = found["rsd"][name]
        assert got["ratio"] == got["each"][got["baseline"]]["ratio"] > 0
        assert got["ratio"] == pytest.approx(min(e["ratio"] for e in got["each"].values()))
        assert set(got["each"]) == set(PAPER.values())
        assert got["spread"] == 0  # of one run
        assert (got["answers_compared"], got["ties"]) == (6, 0)
        seconds = got["seconds"]
        share = got["ceiling_seconds"] / seconds[RSD][0]  # on a busy machine it may be above 1
        assert got["limit_share"] == pytest.approx(share, rel=1e-4)
        assert share > 0
        assert set(got["cpu_seconds"]) == set(seconds)
        assert all(cpu > 0 for column in got["cpu_seconds"].values() for cpu in column)
        assert (ASSISTED in seconds) == (name == "batch1")
        assert found["vs_target"][name]["ratio"] == pytest.approx(
            seconds[TARGET][0] / seconds[RSD][0], rel=1e-4
        )
        assert got["accuracy"][RSD] == got["accuracy"][PAPER["generate"]]
    assert found["machine"]["threads"] == 1


def test_decode_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "DECODE_BATCHES", (1, 2))
    monkeypatch.setattr(decode, "QUESTION", "Add {number} and {number}.")
    target = make_tiny_models(tmp_path).draft
    monkeypatch.setattr(decode, "write_with_generate", keep_to_real_ids)
    command.main(
        ["--skip", "rsd", "compiled", "--model", str(target), "--tokens", "5", "--runs", "2",
         "--threads", "1", "--llama-cpp", sys.executable]
    )  # fmt: skip
    out = capsys.readouterr().out
    assert "vLLM: not installed (name its Python with --vllm)" in out
    assert "llama.cpp: not installed: llama.cpp reads GGUF files" in out
    found = json.loads(out.splitlines()[-1])["decode"]
    for name in ("batch1", "batch2"):
        assert found[name]["ratio"] > 0
        assert found[name]["spread"] >= 0
        # A difference of two times: on a busy machine it may be below 0.
        assert math.isfinite(found[name]["limit_share"])
    assert (found["new_tokens"], found["dtype"]) == (5, "float32")
    assert set(found["not_available"]) == {"llama.cpp", "vLLM"}


def keep_to_real_ids(model: Any, batch: Any, num_tokens: int) -> list[list[int]]:
    """Greedy without a cache, and without the padded ids that the tiny models like best."""
    rows = torch.tensor(batch)
    for _ in range(num_tokens):
        logits = model(input_ids=rows).logits[:, -1, : model.config.vocab_size - 3]
        rows = torch.cat([rows, logits.argmax(-1, keepdim=True)], dim=1)
    return [row.tolist() for row in rows[:, -num_tokens:]]


def test_ratio_is_of_medians_and_its_spread_of_runs_side_by_side() -> None:
    found = rsd_part.compared(Timing((1.0, 2.0, 4.0)), Timing((4.0, 6.0, 12.0)))
    assert found == {"ratio": 3.0, "spread": pytest.approx(1 / 3)}


def test_agreement_counts_tokens_up_to_where_they_part() -> None:
    assert decode_part.agreement([[1, 2, 3], [4, 5, 6]], [[1, 9, 3], [4, 5, 6]]) == 4


def comes_true(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """A signal takes effect a moment after it is sent."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def child(tmp_path: Path, **settings: Any) -> Peer:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    return Peer(sys.executable, script, settings)


def test_peer_writes_and_rests_between_requests(tmp_path: Path) -> None:
    peer = child(tmp_path, broken=False)
    try:
        assert peer.version == "7"
        for _ in range(2):
            assert peer.write([[1, 2], [3]], 3) == [[2, 2, 2], [3, 3, 3]]
            assert comes_true(peer.is_stopped)
    finally:
        peer.close()
    with pytest.raises(NotAvailable):
        peer.write([[1]], 1)


def test_peer_does_not_see_the_modules_beside_its_script(tmp_path: Path) -> None:
    """`bench/kernels.py` is not the package `kernels` that transformers looks for."""
    (tmp_path / "beside.py").write_text("")
    script = tmp_path / "child.py"
    script.write_text("import beside")
    with pytest.raises(NotAvailable, match="No module named 'beside'"):
        Peer(sys.executable, script, {})


def test_peer_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match="no engine here"):
        child(tmp_path, broken=True)
    with pytest.raises(NotAvailable, match="does not run"):
        Peer(str(tmp_path / "nothing"), tmp_path / "child.py", {})


@pytest.mark.parametrize(
    "script, module", [("peer_llama_cpp.py", "llama_cpp"), ("peer_vllm.py", "vllm")]
)
def test_scripts_say_that_their_engine_is_missing(script: str, module: str) -> None:
    path = Path(decode_part.__file__).parent / script
    settings = {"threads": 1, "context": 8, "sequences": 1, "gguf": "x", "folder": "x"}
    with pytest.raises(NotAvailable, match=f"No module named '{module}'"):
        Peer(sys.executable, path, settings)
