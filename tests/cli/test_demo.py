"""`rsd demo`: with tiny models for its shape, with the demo family for what it shows."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from rsd_engine import Metrics
from rsd_engine.cli.demo.comparison import Comparison, Measured
from rsd_engine.cli.demo.numbers import reading, why_slower
from rsd_engine.cli.demo.run import first_of_each_kind
from rsd_engine.cli.demo.table import print_comparison
from rsd_engine.cli.show import StepView
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import generate
from rsd_engine.outputs import Flops, RequestOutput, RoleMetrics
from tests.cli.conftest import Rsd

TAG = re.compile(r"^\[(draft \d\.\d\d|rejected \d\.\d\d|target)\] ")


def numbers_of(row: str, text: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.strip().startswith(row)]
    return line.strip().removeprefix(row).split()


def tags_of(text: str) -> list[str]:
    return [match[1].split()[0] for line in text.splitlines() if (match := TAG.match(line))]


def test_shows_every_step_and_compares(rsd: Rsd, model_args: list[str]) -> None:
    result = rsd("demo", "2", "--compare=2", "--threshold=0.35", "--seed=1", *model_args)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    for number, problem in enumerate(first_of_each_kind(generate(1, "test", 2), 2), start=1):
        assert f"Problem {number} of 2 ({problem.family}): {problem.question}" in lines
    tags = tags_of(result.stdout)
    assert set(tags) == {"draft", "rejected", "target"}
    accepted, share = numbers_of("draft steps accepted", result.stdout)
    assert int(accepted) == tags.count("draft")  # the problems that are shown are those compared
    assert share == f"({tags.count('draft') / (tags.count('draft') + tags.count('rejected')):.0%})"
    assert numbers_of("right answers", result.stdout) == ["0", "(0%)"] * 3
    for row in ("seconds, one at a time", "seconds, 16 at once"):
        *seconds, ratio, x = numbers_of(row, result.stdout)
        assert len(seconds) == 3 and min(map(float, seconds)) > 0 and float(ratio) > 0 and x == "x"
    assert "RSD got 0 of 2 right (target alone 0, draft alone 0) for " in result.stdout
    assert "prefix cache off" in result.stdout


def test_json_is_all_that_stdout_gets_and_the_page_has_all_answers(
    rsd: Rsd, model_args: list[str], tmp_path: Path
) -> None:
    page = tmp_path / "demo.html"
    result = rsd(
        "demo", "--json", "--compare=2", "--threshold=1.5", f"--html={page}", *model_args
    )  # fmt: skip
    found = json.loads(result.stdout)
    assert (found["problems"], found["seed"], found["threshold"]) == (2, 0, 1.5)
    draft, target, rsd_alone = (found["modes"][mode] for mode in ("draft", "target", "rsd"))
    assert draft["target_tokens_written"] == target["draft_tokens_written"] == 0
    assert draft["passes"]["prm"] == target["steps_rejected"] == 0
    assert rsd_alone["steps_accepted"] == 0 < rsd_alone["steps_rejected"]
    assert draft["flops_generated"] < draft["flops_all"]
    assert found["reading"].startswith("RSD got 0 of 2 right")
    assert result.stderr.startswith(f"6 answers in {page} (")
    [data] = re.findall(r'type="application/json"[^>]*>(.*?)</script>', page.read_text(), re.S)
    [run] = json.loads(data)["runs"]
    asked = [problem.question for problem in generate(0, "test", 2)]
    assert [(one["method"], one["question"]["text"]) for one in run["records"]] == [
        (mode, question) for mode in ("rsd", "target", "draft") for question in asked
    ]
    rejected = sum(step["rejected"] is not None for one in run["records"] for step in one["steps"])
    assert rejected == rsd_alone["steps_rejected"]


@pytest.mark.parametrize(
    ("path", "message"),
    [("demo.txt", "must end in .html"), ("none/demo.html", "must be in a folder that exists")],
)
def test_a_page_that_cannot_be_written_is_refused_first(rsd: Rsd, path: str, message: str) -> None:
    result = rsd("demo", f"--html={path}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: --html {message}, got {path}\n"


def test_threshold_and_seed_decide(rsd: Rsd, model_args: list[str]) -> None:
    all_pass = rsd("demo", "1", "--compare=1", "--threshold=0", "--seed=4", *model_args).stdout
    assert numbers_of("draft steps accepted", all_pass)[1] == "(100%)"
    assert generate(4, "test", 1)[0].question in all_pass


def test_defaults_come_from_the_config(rsd: Rsd, model_args: list[str], tmp_path: Path) -> None:
    path = tmp_path / "rsd.toml"
    path.write_text("[demo]\nproblems = 2\ncompare = 1\nthreshold = 1.5\n")
    shown = rsd("demo", "1", "--config", path, *model_args).stdout
    assert "Problem 1 of 1" in shown and "1 held-out problem" in shown
    assert numbers_of("draft steps accepted", shown) == ["0", "(0%)"]
    for bad in ("problems", "compare"):
        path.write_text(f"[demo]\n{bad} = 0\n")
        result = rsd("demo", "--config", path, *model_args)
        assert (result.exit_code, result.stderr) == (
            2, f"error: demo.{bad} must be in [1, 10000], got 0\n"
        )  # fmt: skip


def test_the_first_of_each_kind_then_the_second() -> None:
    """By the rule that the command prints, worked out on kinds and places alone."""
    problems = generate(0, "test", 40)
    shown = first_of_each_kind(problems, 9)
    kinds = ["people", "ages", "days", "keeping", "making", "shopping", "saving"]
    assert [problem.family for problem in shown] == [*kinds, "people", "ages"]
    for kind, first in zip(kinds, shown, strict=False):
        assert first == next(problem for problem in problems if problem.family == kind)
    assert problems.index(shown[7]) > problems.index(shown[0])
    assert len(first_of_each_kind(problems, 40)) == 40


def _measured(metrics: Metrics, right: int, seconds: float, at_once: float) -> Measured:
    one = RequestOutput("", None, (), (), metrics, 0)
    return Measured((one, replace(one, metrics=Metrics())), right, seconds, at_once)


def _comparison(at_once: float) -> Comparison:
    draft = Metrics(draft=RoleMetrics(tokens_generated=90, passes=90), flops=Flops(10, 20))
    target = Metrics(target=RoleMetrics(tokens_generated=100, passes=100), flops=Flops(1000, 2000))
    rsd = Metrics(
        draft=RoleMetrics(tokens_generated=70, tokens_discarded=25, passes=95),
        target=RoleMetrics(tokens_generated=25, passes=25),
        prm=RoleMetrics(passes=12),
        steps_accepted=8,
        steps_rejected=2,
        flops=Flops(300, 1500),
    )
    modes = {
        "draft": _measured(draft, 1, 1.0, 0.5),
        "target": _measured(target, 2, 10.0, 4.0),
        "rsd": _measured(rsd, 2, 5.0, at_once),
    }
    return Comparison(generate(0, "test", 2), 0, 0.7, "cpu", 2, modes)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_has_a_line_for_each_row(width: int) -> None:
    out = io.StringIO()
    print_comparison(StepView(Console(file=out, width=width)), _comparison(at_once=6.0))
    table = out.getvalue().partition("RSD got")[0]
    title, heads, _, *rows = [line.strip() for line in table.splitlines() if line.strip()]
    assert title == "2 held-out problems"
    assert heads.split() == ["draft", "alone", "target", "alone", "RSD", "RSD/target"]
    assert [re.split("  +", row) for row in rows] == [
        ["right answers", "1 (50%)", "2 (100%)", "2 (100%)", "1.00 x"],
        ["tokens by the target", "0", "100", "25", "0.25 x"],
        ["FLOPs, tokens written", "10", "1000", "300", "0.30 x"],
        ["FLOPs, all tokens read", "20", "2000", "1500", "0.75 x"],
        ["seconds, one at a time", "1.00", "10.00", "5.00", "0.50 x"],
        ["seconds, 16 at once", "0.50", "4.00", "6.00", "1.50 x"],
        ["draft steps accepted", "8 (80%)"],
    ]
    assert "RSD is slower here 16 at once:" in out.getvalue()


def test_the_reading_follows_from_the_numbers() -> None:
    assert reading(_comparison(at_once=2.0)) == (
        "RSD got 2 of 2 right (target alone 2, draft alone 1) for 25% of the tokens by the target, "
        "30% of the FLOPs, 50% of the seconds one at a time and 50% of the seconds 16 at once "
        "that the target alone took."
    )
    assert why_slower(_comparison(at_once=2.0)) is None


def test_it_is_said_where_rsd_is_slower_and_why() -> None:
    found = _comparison(at_once=6.0)
    assert "and 150% of the seconds 16 at once" in reading(found)
    why = why_slower(found)
    assert why is not None and why.startswith(
        "RSD is slower here 16 at once: it made 132 passes of three models (draft 95, target 25, "
        "PRM 12), the target alone 100."
    )


def test_says_that_the_models_are_missing(
    rsd: Rsd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def absent(role: str) -> Path:
        raise FileNotFoundError(f"no demo checkpoint for the role {role!r}")

    monkeypatch.setattr("rsd_engine.demo.checkpoint_dir", absent)
    result = rsd("demo")
    assert result.exit_code == 1
    assert result.stderr == "error: no demo checkpoint for the role 'draft'\n"


def _has_checkpoints() -> bool:
    try:
        return all(checkpoint_dir(role).is_dir() for role in ("draft", "target", "prm"))
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not _has_checkpoints(), reason="the demo checkpoints are not trained yet")
def test_the_demo_family_shows_rewrites_and_right_answers(rsd: Rsd) -> None:
    """As everybody runs it first, but compared on fewer problems."""
    done = rsd("demo", "--compare=12", "--device=cpu")
    assert done.exit_code == 0
    tags = tags_of(done.stdout)
    assert tags.count("draft") >= 3
    assert tags.count("rejected") == tags.count("target") >= 3
    answers = [line for line in done.stdout.splitlines() if line.startswith("answer ")]
    assert len(answers) == 3 and all(": right (draft alone: " in line for line in answers)
    draft, _, target, _, rsd_alone, *_ = numbers_of("right answers", done.stdout)
    assert int(draft) < int(rsd_alone) and int(target) >= 9
    tokens = numbers_of("tokens by the target", done.stdout)
    assert int(tokens[0]) == 0 < int(tokens[2]) < int(tokens[1])
