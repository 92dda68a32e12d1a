"""Writes the page: template, style, scripts and the answers, all in one file of HTML.

The answers are JSON in an element that no browser runs; scripts put them on the page as text. A
content security policy names the scripts and the style by their hashes and forbids everything else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template
from typing import Any

from rsd_engine.evaluate.trace.formulas import FORMULA, can_parse, find_formulas, parse_formulas

_SCRIPTS = ("text.js", "answers.js", "list.js", "answer.js", "page.js")  # in this order


@dataclass(frozen=True)
class Run:
    """The answers of a file.

    Attributes:
        name: what the page calls it.
        records: as `Record.to_json` of `rsd_engine.evaluate.record` gives them. `seed`, `seconds`
            and `correct` may be None; `role_seconds` and single counts may be missing.
    """

    name: str
    records: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Page:
    """A page, and how many formulas it shows as LaTeX, because nothing could parse them."""

    html: str
    unparsed: int


def make_page(runs: Sequence[Run], title: str = "RSD trace") -> Page:
    """The page of one run, or of two side by side. Without latex2mathml, LaTeX stays as it is.

    Raises:
        ValueError: there is no answer, or two runs have no question in common.
    """
    check_runs(runs)
    found = find_formulas(text for run in runs for record in run.records for text in texts(record))
    formulas = parse_formulas(found) if can_parse() else {}
    data = {
        "runs": [{"name": run.name, "records": list(map(_slim, run.records))} for run in runs],
        "formula": FORMULA,
        # as text, which a browser reads faster; it parses those that it shows
        "formulas": {source: _json(tree) for source, tree in formulas.items()},
    }
    style, script = _template("style.css"), "\n".join(map(_template, _SCRIPTS))
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = Template(_template("page.html")).substitute(
        title=html.escape(title), csp=policy, style=style, script=script, data=_embedded(data)
    )
    return Page(page, unparsed=len(found) - len(formulas))


def check_runs(runs: Sequence[Run]) -> None:
    """Raises ValueError unless every run has answers, and two have a question in common."""
    for run in runs:
        if not run.records:
            raise ValueError(f"{run.name} has no answers; give a file of results")
    asked = [{record["question"]["id"] for record in run.records} for run in runs]
    if not set.intersection(*asked):
        raise ValueError(
            f"{' and '.join(run.name for run in runs)} have no question in common; give two runs "
            "on the same questions, or make a page of each"
        )


def texts(record: Mapping[str, Any]) -> Iterator[str]:
    """All texts of a record that may hold mathematics, and answers that are LaTeX as formulas."""
    yield from (record["question"]["text"], record["text"])
    found = [sample["found"] for sample in record.get("samples", ())]
    for answer in (record["question"]["answer"], record["found"], *found):
        yield rf"\({answer}\)" if answer and "\\" in answer else answer or ""
    for step in record["steps"]:
        yield step["text"]
        yield from (candidate["text"] for candidate in step["candidates"])
        if step["rejected"] is not None:
            yield step["rejected"]["text"]
    yield from (sample["text"] for sample in record.get("samples", ()))


def _slim(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same without its text, where that is the texts of its steps."""
    if record["text"] != "".join(step["text"] for step in record["steps"]):
        return record
    return {name: value for name, value in record.items() if name != "text"}


def _template(name: str) -> str:
    return (files(__package__) / "template" / name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    """How a content security policy names an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"


def _json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _embedded(data: Any) -> str:
    """JSON that ends no element, and that UTF-8 can write: half a surrogate pair is escaped."""
    return _json(data).replace("<", r"\u003c").encode(errors="backslashreplace").decode()
