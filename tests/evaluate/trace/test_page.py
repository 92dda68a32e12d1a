"""The page as a file: what it holds, and what it cannot run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from rsd_engine.evaluate.trace.page import Run, make_page
from tests.evaluate.trace.records import HOSTILE, record, step


class Scripts(HTMLParser):
    """The elements of a page that hold no markup, and all its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.held: list[tuple[str, dict[str, str | None], str]] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.policy = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag == "meta" and ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = str(dict(attrs)["content"])
        if tag in ("script", "style"):
            self.held.append((tag, dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:
            tag, attributes, text = self.held[-1]
            self.held[-1] = (tag, attributes, text + data)


def data_of(page: str) -> Any:
    return json.loads(Scripts(page).held[1][2])


def test_texts_of_models_come_through_as_data() -> None:
    odd = f"{HOSTILE} \u2028 \ud800 Ω"
    records = [record("a", [step(odd), step("x", rejected=(odd, None))], text=odd)]
    page = make_page([Run("run.jsonl", records)], title="<b>")
    assert "<title>&lt;b&gt;</title>" in page.html
    held = Scripts(page.html).held
    assert [(tag, bool(attributes)) for tag, attributes, _ in held] == [
        ("style", False), ("script", True), ("script", False),
    ]  # fmt: skip
    assert "<" not in held[1][2]
    (run,) = data_of(page.html)["runs"]
    assert run["name"] == "run.jsonl"
    (found,) = run["records"]
    assert found == {name: value for name, value in records[0].items() if name != "text"}


def test_a_text_that_is_not_that_of_its_steps_is_kept() -> None:
    records = [record("a", [step("one")]) | {"text": "two"}, record("b", []) | {"text": "three"}]
    found = data_of(make_page([Run("run", records)]).html)["runs"][0]["records"]
    assert [one["text"] for one in found] == ["two", "three"]


def test_only_the_scripts_of_the_page_may_run_and_nothing_is_loaded() -> None:
    page = make_page([Run("run", [record("a", [step("one")])])]).html
    scripts = Scripts(page)
    style, _, script = (text for _, _, text in scripts.held)
    wanted = {
        kind: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for kind, text in (("script", script), ("style", style))
    }
    assert scripts.policy == (
        f"default-src 'none'; script-src 'sha256-{wanted['script']}'; "
        f"style-src 'sha256-{wanted['style']}'; base-uri 'none'; form-action 'none'"
    )
    names = {name for name, _ in scripts.attributes}
    assert not names & {"src", "srcset", "style", "onclick", "onload"}
    links = [value for name, value in scripts.attributes if name == "href"]
    assert links == ["#reading"]
    assert set(re.findall(r"https?://[^\s\"]+", page)) == {"http://www.w3.org/1998/Math/MathML"}
    assert "innerHTML" not in script and "@import" not in style and "url(" not in style


def test_formulas_of_all_texts_are_parsed() -> None:
    pytest.importorskip("latex2mathml", reason="latex2mathml parses the LaTeX")
    steps = [
        step(r"$1$, $\nosuch$", rejected=("$2$", 0.1)),
        step("$3$", candidates=(("$4$", 0.1),)),
    ]
    samples = [{"text": "$5$", "found": "$6$", "correct": True, "reward": None}]
    made = record("a", steps, text="$7$", samples=samples) | {"found": "$8$", "text": "$9$"}
    made["question"]["answer"] = r"\frac{1}{2}"
    page = make_page([Run("run", [made])])
    formulas = data_of(page.html)["formulas"]
    assert set(formulas) == {*(f"${number}$" for number in range(1, 10)), r"\(\frac{1}{2}\)"}
    assert json.loads(formulas["$3$"])[2] == ["mrow", {}, ["mn", {}, "3"]]
    assert page.unparsed == 1


def test_without_a_parser_formulas_stay_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rsd_engine.evaluate.trace.page.can_parse", lambda: False)
    page = make_page([Run("run", [record("a", [step("$1$ and $2$")])])])
    assert page.unparsed == 2 and data_of(page.html)["formulas"] == {}


def test_runs_without_answers_or_a_common_question_are_refused() -> None:
    run = Run("a.jsonl", [record("a", [])])
    with pytest.raises(ValueError, match="b.jsonl has no answers"):
        make_page([run, Run("b.jsonl", [])])
    with pytest.raises(ValueError, match="a.jsonl and b.jsonl have no question in common"):
        make_page([run, Run("b.jsonl", [record("b", [])])])
