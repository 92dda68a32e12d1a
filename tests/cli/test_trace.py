"""`rsd trace`: from files of results to a page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rsd_engine.cli.eval.run import RESULTS
from rsd_engine.cli.generate.questions import read_lines
from rsd_engine.cli.trace import read
from tests.cli.conftest import Rsd, write_jsonl
from tests.evaluate.trace.records import record, step


def records_of(page: Path) -> list[list[dict[str, Any]]]:
    match = re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert match is not None
    return [run["records"] for run in json.loads(match[1])["runs"]]


def test_results_of_eval(rsd: Rsd, tmp_path: Path) -> None:
    records = [record("a", [step("one", rejected=("two", 0.2))]), record("b", [step("x")])]
    results = write_jsonl(tmp_path / "results.jsonl", [*records, '{"question": {"id"'])
    page = tmp_path / "page.html"
    done = rsd("trace", results, "--output", page, "--title", "Mine & yours")
    assert done.exit_code == 0 and done.stdout == "" and f"2 answers in {page}" in done.stderr
    wanted = [{name: value for name, value in r.items() if name != "text"} for r in records]
    assert records_of(page) == [wanted]
    assert "<h1>Mine &amp; yours</h1>" in page.read_text(encoding="utf-8")


def test_two_runs_of_one_name_are_told_apart(rsd: Rsd, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        made = {"line": 1, "input": "0", "run": "0", **record("q", [step(folder)])}
        write_jsonl(tmp_path / folder / "results.jsonl", [made])
    page = tmp_path / "page.html"
    paths = [tmp_path / "a" / "results.jsonl", tmp_path / "b" / "results.jsonl"]
    rsd("trace", *paths, "--output", page)
    assert [run[0]["steps"][0]["text"] for run in records_of(page)] == ["a", "b"]
    assert all(json.dumps(str(path)) in page.read_text(encoding="utf-8") for path in paths)
    files = records_of(page)
    assert RESULTS == read.RESULTS == "results.jsonl"
    rsd("trace", tmp_path / "a", tmp_path / "b", "--output", page)
    assert records_of(page) == files


def generated(line: int, digest: str, texts: list[str]) -> dict[str, Any]:
    """A result as `rsd generate` writes it."""
    outputs = [
        {
            "index": index, "text": text, "token_ids": [1, 2], "finish_reason": "stop",
            "stop_reason": None,
            "steps": [
                {
                    "text": text, "token_ids": [1, 2], "source": "target", "reward": None,
                    "rejected": {"text": "no", "token_ids": [3], "reward": 0.5},
                }
            ],
        }
        for index, text in enumerate(texts)
    ]  # fmt: skip
    metrics = {"draft_tokens": 3, "discarded_tokens": 1, "target_tokens": 2, "flops": 90}
    head = {"line": line, "input": digest, "settings": "0"}
    return {**head, "seed": 7, "outputs": outputs, "metrics": metrics}


def test_results_of_generate(rsd: Rsd, tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "Why?"}]
    questions = write_jsonl(tmp_path / "q.jsonl", [{"question": "What?"}, {"messages": chat}, "{"])
    digests = [line.digest for line in read_lines(questions)]
    failed = {"line": 3, "input": digests[2], "settings": "0", "id": 5, "error": "not JSON"}
    lines = [generated(1, digests[0], ["yes"]), generated(2, digests[1], ["p", "q"]), failed]
    results = write_jsonl(tmp_path / "results.jsonl", lines)
    page = tmp_path / "page.html"
    assert rsd("trace", results, "-o", page, "-i", questions).exit_code == 0
    first, second, third, last = records_of(page)[0]
    assert first == {
        "question": {"id": "line 1", "text": "What?", "answer": "", "source": ""},
        "method": "rsd generate",
        "settings": {},
        "seed": 7,
        "found": None,
        "correct": None,
        "finish_reason": "stop",
        "steps": [step("yes", rejected=("no", 0.5))],
        "error": None,
        "counts": {
            "draft_tokens": 3, "discarded_tokens": 1, "target_tokens": 2, "flops_generated": 90
        },
        "seconds": None,
    }  # fmt: skip
    assert second["question"]["text"] == third["question"]["text"] == "Why?"
    assert [second["settings"], third["settings"]] == [{"sample": "1 of 2"}, {"sample": "2 of 2"}]
    assert last["question"]["id"] == "5" and last["error"] == "not JSON"
    assert last["finish_reason"] == "error" and last["steps"] == []
    rsd("trace", results, "-o", page)
    assert records_of(page)[0][0]["question"]["text"] == ""


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "a.jsonl has no answers"),
        (["{", "{}"], "a.jsonl, line 1: not JSON"),
        ([{"text": "x"}, {}], "a.jsonl, line 1: neither a result of `rsd eval` nor of `rsd gen"),
        ([{"question": {"id": "a"}}], "a.jsonl, line 1: "),
        ([{"question": "a"}], "a.jsonl, line 1: question must be an object"),
        ([{"line": 1, "outputs": [{}]}], "a.jsonl, line 1: "),
    ],
)
def test_bad_results_are_named(rsd: Rsd, tmp_path: Path, lines: list[Any], message: str) -> None:
    page = tmp_path / "page.html"
    done = rsd("trace", write_jsonl(tmp_path / "a.jsonl", lines), "-o", page)
    assert done.exit_code == 2 and message in done.stderr and not page.exists()
    assert len(done.stderr.splitlines()) == 1


def test_bad_arguments_are_named(rsd: Rsd, tmp_path: Path) -> None:
    good = write_jsonl(tmp_path / "a.jsonl", [record("q", [step("x")])])
    done = rsd("trace", good, "-o", good)
    assert done.exit_code == 2 and "--output must end in .html, got" in done.stderr
    assert good.read_text().startswith('{"question"')
    other = write_jsonl(tmp_path / "b.jsonl", [record("r", [step("x")])])
    done = rsd("trace", good, other, "-o", tmp_path / "page.html")
    assert done.exit_code == 2 and "have no question in common" in done.stderr
    assert "cannot read" in rsd("trace", tmp_path / "none.jsonl").stderr
    asked = write_jsonl(tmp_path / "q.jsonl", [{"question": "changed"}])
    old = write_jsonl(tmp_path / "g.jsonl", [generated(1, "0", ["x"])])
    done = rsd("trace", old, "-i", asked, "-o", tmp_path / "page.html")
    assert done.exit_code == 2 and "line 1: answers another line 1 than that of" in done.stderr


def test_formulas_stay_latex_without_their_parser(
    rsd: Rsd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("page", "formulas"):
        monkeypatch.setattr(f"rsd_engine.evaluate.trace.{module}.can_parse", lambda: False)
    results = write_jsonl(tmp_path / "a.jsonl", [record("q", [step("$x$ and $y$")])])
    done = rsd("trace", results, "-o", tmp_path / "page.html")
    assert done.exit_code == 0
    assert '2 formulas stay LaTeX; to see mathematics: pip install "rsd-engine[eval]"' in (
        done.stderr
    )
