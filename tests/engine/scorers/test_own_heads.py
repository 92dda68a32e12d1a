"""The target as judge, and probes: scores as of a plain forward over the whole text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer

from rsd_engine import Constant, Engine, Probe, RequestOutput, Scorer, TargetJudge, Threshold
from rsd_engine.demo import ModelRole, checkpoint_dir
from rsd_kernels.state.enums import Role
from tests.engine.harness.runs import all_pages_free, decisions, harsh
from tests.engine.scorers.oracle import last_hidden, logits, scored_steps, solve

JUDGE = TargetJudge(question="Is it right? From 0 to 9.", answer="It is ")
WIDTH: dict[ModelRole, int] = {"draft": 64, "target": 256}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(checkpoint_dir("target"))


def opened(scorer: Scorer, **options: Any) -> Engine:
    return Engine(
        checkpoint_dir("draft"), checkpoint_dir("target"), scorer=scorer, device="cpu",
        dtype="float32", max_model_len=400,
        **{"policy": Constant(0.5), "max_num_seqs": 4, **options},
    )  # fmt: skip


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) / shape[-1] ** 0.5


def probe_file(folder: Path, role: ModelRole, layers: int, rows: int) -> Path:
    width, file = WIDTH[role], folder / f"{role}-{layers}-{rows}.safetensors"
    tensors = {"weight": 2 * normal(rows, width), "bias": normal(rows)}
    if layers == 2:
        tensors = {
            "0.weight": normal(24, width), "0.bias": normal(24, seed=1),
            "2.weight": 4 * normal(rows, 24), "2.bias": normal(rows, seed=2),
        }  # fmt: skip
    save_file(tensors, file)
    return file


def probed(file: Path, hidden: Tensor) -> float:
    """As torch.nn would compute it."""
    from safetensors.torch import load_file

    weights = load_file(file)
    if "weight" in weights:
        scores = weights["weight"] @ hidden + weights["bias"]
    else:
        inner = (weights["0.weight"] @ hidden + weights["0.bias"]).relu()
        scores = weights["2.weight"] @ inner + weights["2.bias"]
    return float(scores.sigmoid() if len(scores) == 1 else scores.softmax(0)[1])


def judge_row(before: Sequence[int], step: Sequence[int], tokenizer: Any) -> list[int]:
    """The text and the question after it; end-of-text closes the answer in any case."""
    body = [*before, *step]
    if body[-1] == tokenizer.eos_token_id:
        body = body[:-1]
    asked = f"<|eos|><|user|>{JUDGE.question}\n<|assistant|>{JUDGE.answer}"
    return [*body, *tokenizer.encode(asked, add_special_tokens=False)]


def judged(row: list[int], tokenizer: Any, *, greedy: bool) -> float:
    digits = [tokenizer.convert_tokens_to_ids(d) for d in "0123456789"]
    shares = logits("target", row)[-1, digits].softmax(0)
    values = torch.arange(10) / 9
    return float(values[shares.argmax()] if greedy else shares @ values)


@pytest.mark.parametrize("greedy", [False, True])
def test_the_judge_scores_as_a_plain_forward(greedy: bool, tokenizer: Any) -> None:
    with opened(TargetJudge(JUDGE.question, JUDGE.answer, greedy=greedy)) as engine:
        results = solve(engine)
        assert all_pages_free(engine)
    kinds = set()
    for result in results:
        for scored in scored_steps(result):
            row = judge_row(scored.before, scored.step, tokenizer)
            assert scored.reward == pytest.approx(judged(row, tokenizer, greedy=greedy), abs=1e-4)
            kinds.add((scored.kept, scored.step[-1] == tokenizer.eos_token_id))
    assert len(kinds) == 4  # kept and rejected, in the middle and at the end


def test_each_token_is_read_once_and_the_question_after_every_step(tokenizer: Any) -> None:
    with opened(JUDGE, max_num_seqs=2) as engine:
        for result in solve(engine):
            held, by_judge, by_writer = 0, 0, 0
            steps = list(result.outputs[0].steps)
            scored = iter(scored_steps(result))
            before = len(result.prompt_token_ids)
            for step in steps:
                one = next(scored)
                by_judge += len(judge_row(one.before, one.step, tokenizer)) - held
                held = before + len(step.token_ids)
                if not one.kept:
                    # The target writes: it reads the last token before it once more.
                    by_writer += len(step.token_ids)
                    held -= 1
                before += len(step.token_ids)
            found = result.metrics.target.cached_tokens  # of the prompt, by way of the judge
            assert result.metrics.prm.tokens_read + found == by_judge
            assert result.metrics.target.tokens_read == by_writer


@pytest.mark.parametrize("role", ["draft", "target"])
@pytest.mark.parametrize(
    ("layers", "rows"),
    [
        (1, 1),
        (2, 1),
        pytest.param(1, 2, marks=pytest.mark.slow),
        pytest.param(2, 2, marks=pytest.mark.slow),
    ],
)
def test_a_probe_scores_as_a_plain_forward(
    role: ModelRole, layers: int, rows: int, tmp_path: Path
) -> None:
    file = probe_file(tmp_path, role, layers, rows)
    with opened(Probe(file, role)) as engine:
        results = solve(engine)
        assert all_pages_free(engine)
        report = engine.memory
    seen = 0
    for result in results:
        for scored in scored_steps(result):
            hidden = last_hidden(role, [*scored.before, *scored.step])
            assert scored.reward == pytest.approx(probed(file, hidden), abs=1e-4)
            seen += 1
    assert seen > 8
    assert report.pages[Role.PRM].pages_held == 0
    assert report.weights[Role.PRM] < 4 * 30 * WIDTH[role]


def scorers(tmp_path: Path) -> list[Scorer]:
    files = {role: probe_file(tmp_path, role, 2, 1) for role in WIDTH}
    return [JUDGE, *(Probe(file, role) for role, file in files.items())]


@pytest.mark.parametrize("which", [0, pytest.param(1, marks=pytest.mark.slow), 2])
def test_nothing_changes_where_memory_is_short(which: int, tmp_path: Path) -> None:
    """NaN in free memory, preemption every few ticks, launches of one tick."""
    scorer = scorers(tmp_path)[which]
    with opened(scorer) as engine:
        calm = solve(engine, count=3)
        with harsh(engine, preempt_every=7):
            strained = solve(engine, count=3)
        assert engine.num_preemptions > 3
    assert [decisions(r) for r in strained] == [decisions(r) for r in calm]
    for ours, theirs in zip(strained, calm, strict=True):
        rewards = [s.reward for s in scored_steps(ours)]
        assert rewards == pytest.approx([s.reward for s in scored_steps(theirs)], abs=1e-5)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_executors_decide_alike(which: int, tmp_path: Path) -> None:
    scorer = scorers(tmp_path)[which]
    told: list[list[RequestOutput]] = []
    for executor in ("eager", "simulated-loop"):
        with opened(scorer, executor=executor) as engine:
            told.append(solve(engine, count=4))
    eager, simulated = told
    assert [decisions(r) for r in eager] == [decisions(r) for r in simulated]
    for ours, theirs in zip(eager, simulated, strict=True):
        rewards = [s.reward for s in scored_steps(ours)]
        assert rewards == pytest.approx([s.reward for s in scored_steps(theirs)], abs=1e-5)


def test_one_writer_may_write_alone(tmp_path: Path) -> None:
    with opened(JUDGE) as engine:
        params = [{"mode": mode} for mode in ("rsd", "target", "draft")]
        assert engine.parts.models.modes == tuple(p["mode"] for p in params)


def test_the_default_threshold_is_the_scorers() -> None:
    with opened(JUDGE, policy=None) as engine:
        assert engine.parts.rules.policy == Threshold(7 / 9)


@pytest.fixture
def bad_files(tmp_path: Path) -> Iterator[dict[str, Path]]:
    width = WIDTH["target"]
    files = {
        "narrow": {"weight": normal(1, 10), "bias": normal(1)},
        "classes": {"weight": normal(3, width), "bias": normal(3)},
        "names": {"weight": normal(1, width), "extra": normal(1)},
        "units": {
            "0.weight": normal(8, width), "0.bias": normal(8), "2.weight": normal(1, 7),
            "2.bias": normal(1),
        },
        "scalar": {
            "0.weight": normal(8, width), "0.bias": normal(8), "2.weight": torch.tensor(1.0),
            "2.bias": normal(1),
        },
        "whole": {"weight": torch.ones(1, width, dtype=torch.int32), "bias": normal(1)},
    }  # fmt: skip
    for name, tensors in files.items():
        save_file(tensors, tmp_path / name)
    (tmp_path / "text").write_text("no tensors")
    yield {name: tmp_path / name for name in (*files, "text", "absent")}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("narrow", r"weight has shape \[1, 10\]; its second size must be 256"),
        ("classes", r"weight has shape \[3, 256\]; it must have one row, or two"),
        ("names", r"has tensors \['extra', 'weight'\]; it must have \['bias', 'weight'\], or"),
        ("units", r"2.weight has shape \[1, 7\]; it must be \[1, 8\]"),
        ("scalar", r"2.weight has shape \[\]; it must have one row, or two"),
        ("whole", r"weight is of type torch.int32; it must hold floating-point"),
        ("text", "damaged or not a safetensors file"),
        ("absent", "there is no such file"),
    ],
)
def test_a_bad_probe_is_named(name: str, message: str, bad_files: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        opened(Probe(bad_files[name]))
    assert "\n" not in str(raised.value)


def test_scorers_that_do_not_go_with_the_models(tmp_path: Path) -> None:
    draft, target, prm = (checkpoint_dir(role) for role in ("draft", "target", "prm"))
    with pytest.raises(ValueError, match="scorer and prm are both given"):
        Engine(draft, target, prm, scorer=JUDGE)
    with pytest.raises(ValueError, match="scorer is given and no target"):
        Engine(draft, scorer=JUDGE)
    with pytest.raises(ValueError, match="scorer must be one of rsd_engine's scorers"):
        Engine(draft, target, scorer="judge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="answer of the judge is empty"):
        TargetJudge(answer=" ")
    with pytest.raises(ValueError, match="role of a probe must be 'target' or 'draft', got 'prm'"):
        Probe("file", "prm")
