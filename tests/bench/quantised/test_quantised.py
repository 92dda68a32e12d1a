"""The benchmark of weights in blocks, on a tiny GGUF file: what it reports, and its gate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from bench.compare.peer_process import NotAvailable
from bench.lib.timing import Mismatch, Timing
from bench.quantised import command, loading, texts
from bench.quantised.files import converted
from bench.quantised.measure import Speed, Task
from rsd_engine import Engine, SamplingParams
from rsd_kernels.cpu import ops as cpu_ops
from tests.models.checkpoints import make_model
from tests.models.gguf_files import write_gguf
from tests.steps.toy_tokenizers import smollm_like

pytestmark = pytest.mark.skipif(not cpu_ops.available(), reason="needs the CPU library")

QUICK = ["--runs", "1", "--threads", "1", "--prompt-tokens", "8", "--tokens", "4", "--batch", "1",
         "2"]  # fmt: skip
LOADED = {"load_seconds": 1.0, "peak_share": 1.0}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = smollm_like()
    model = make_model(
        "llama2", hidden_size=64, intermediate_size=96, vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=256,
    )  # fmt: skip
    return write_gguf(
        tmp_path_factory.mktemp("quantised") / "tiny.gguf", model,
        quantise=gguf.GGMLQuantizationType.Q4_1, tokenizer=tokenizer,
    )  # fmt: skip


class OursAsPeer:
    """In place of llama.cpp: this engine, one token wrong in files whose name has `WRONG`."""

    WRONG = "never"

    def __init__(self, python: str, script: Path, settings: dict[str, Any]) -> None:
        self.is_wrong = self.WRONG in settings["gguf"]
        self.engine = Engine(
            target=settings["gguf"], device="cpu", dtype="float32", step_delimiters=None,
            max_num_seqs=settings["sequences"], max_model_len=settings["context"],
        )  # fmt: skip

    def write(self, prompts: Sequence[list[int]], num_tokens: int) -> list[list[int]]:
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        results = self.engine.generate(list(prompts), params, use_tqdm=False)
        written = [list(result.outputs[0].token_ids) for result in results]
        if self.is_wrong and num_tokens == texts.NUM_TOKENS:
            written[0][2] ^= 1
        return written

    def close(self) -> None:
        self.engine.close()


def test_all_formats_beside_llama_cpp(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "Peer", OursAsPeer)
    monkeypatch.setattr(OursAsPeer, "WRONG", "Q8_0")
    monkeypatch.setattr(command, "loaded", lambda path: LOADED)
    assert command.main(["--model", str(file), "--llama-cpp", "python", *QUICK]) == 0
    said = capsys.readouterr().out
    found = json.loads(said.splitlines()[-1])
    assert found["loading"] == dict.fromkeys(("Q4_1", "Q8_0", "BF16"), LOADED)
    for name in ("Q4_1", "BF16", "Q4_1, expanded"):
        assert found["texts"][name]["equal"] == found["texts"][name]["prompts"] == 10
    wrong = found["texts"]["Q8_0"]
    assert wrong["equal"] == 0 and {d["position"] for d in wrong["differences"]} == {2}
    speeds = {(s["file"], s["batch"], s["who"]): s for s in found["speeds"]}
    assert len(speeds) == 3 * 2 * 2
    for (name, batch, who), speed in speeds.items():
        rates = speed["decode_tokens_per_second"]
        assert rates["min"] <= rates["median"] <= rates["max"]
        assert f"{name:>4}  {batch:>5}  {who:>9}" in said
        other = speeds[name, batch, "llama.cpp"]["decode_tokens_per_second"]
        if who == "ours":
            assert speed["decode_to_llama_cpp"] == pytest.approx(
                rates["median"] / other["median"], rel=1e-4
            )
        assert ("decode_to_bf16" in speed) == (who == "ours" and name != "BF16")


def test_without_llama_cpp(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: object) -> None:
        raise NotAvailable("No module named 'llama_cpp'")

    monkeypatch.setattr(command, "Peer", none)
    monkeypatch.setattr(command, "loaded", lambda path: LOADED)
    arguments = ["--model", str(file), *QUICK]
    for more, reason in (
        ([], "llama.cpp: not given (name its Python with --llama-cpp)"),
        (["--llama-cpp", "x"], "llama.cpp: not available: No module named 'llama_cpp'"),
    ):
        assert command.main([*arguments, *more]) == 0
        said = capsys.readouterr().out
        found = json.loads(said.splitlines()[-1])
        assert reason in said and found["not_available"] == reason
        assert found["texts"] == {} and {s["who"] for s in found["speeds"]} == {"ours"}


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--model", "nowhere.gguf", *QUICK])
    assert "--model must be a .gguf file, got nowhere.gguf" in capsys.readouterr().err


def test_other_tokens_than_those_of_the_expansion_are_not_timed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, writer = command._engine, command._writer
    expansions = []

    def open_and_note(path: Path, task: Task) -> Engine:
        engine = opened(path, task)
        if path.name.endswith("Q8_0.F32.gguf"):
            expansions.append(engine)
        return engine

    def turned_round(engine: Engine) -> Any:
        write = writer(engine)
        if engine not in expansions:
            return write
        return lambda prompts, count: [[ids[0] ^ 1, *ids[1:]] for ids in write(prompts, count)]

    monkeypatch.setattr(command, "_engine", open_and_note)
    monkeypatch.setattr(command, "_writer", turned_round)
    monkeypatch.setattr(command, "measure", lambda *_: pytest.fail("timed all the same"))
    monkeypatch.setattr(command, "loaded", lambda path: LOADED)
    with pytest.raises(Mismatch, match="Q8_0, batch 1, 4 greedy tokens: sequence 0 differs"):
        command.main(["--model", str(file), *QUICK])


def test_what_loading_takes(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loading.main(str(file))
    found = json.loads(capsys.readouterr().out)
    assert found["file_bytes"] == file.stat().st_size
    assert 0 < found["weight_bytes"] < found["file_bytes"]
    assert found["load_seconds"] > 0 and found["peak_bytes"] >= 0


def test_a_converted_file_has_the_values_of_its_source(file: Path) -> None:
    def values(path: Path) -> dict[str, torch.Tensor]:
        return {
            tensor.name: torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
            for tensor in gguf.GGUFReader(path).tensors
        }

    source, exact, eight = values(file), values(converted(file, "F32")), converted(file, "Q8_0")
    assert source.keys() == exact.keys()
    assert all(torch.equal(source[name], exact[name]) for name in source)
    kinds = {len(t.shape): t.tensor_type.name for t in gguf.GGUFReader(eight).tensors}
    assert kinds == {1: "F32", 2: "Q8_0"}
    for name, value in values(eight).items():
        torch.testing.assert_close(
            value, source[name], rtol=0, atol=float(source[name].abs().max()) / 127
        )
    before = eight.stat()
    assert converted(file, "Q8_0").stat() == before  # written once


def test_near_ties_are_counted() -> None:
    found = texts.Texts(
        10,
        [
            texts.Difference(0, 5, 0.01),
            texts.Difference(3, 7, texts.NEAR_TIE),
            texts.Difference(4, 9, None),
        ],
    )
    counted = found.to_dict()
    assert (counted["equal"], counted["differ_at_near_ties"]) == (7, 1)
    assert "7 of 10 greedy texts" in str(found) and "2 elsewhere" in str(found)


def test_rates_leave_the_prompt_out() -> None:
    task = Task(prompt_tokens=100, tokens=11, sequences=2)
    ours = Speed("Q4_1", 2, "ours", task, Timing((3.0, 3.0)), Timing((1.0, 1.0)))
    assert ours.decode_rates["median"] == pytest.approx(2 * 10 / (3.0 - 1.0))
    assert ours.prompt_rate == pytest.approx(200.0)
