"""LaTeX becomes trees of MathML, and nothing that a model writes becomes markup."""

from __future__ import annotations

from typing import Any

import pytest

from rsd_engine.evaluate.trace.formulas import (
    _ALLOWED,
    _TAGS,
    find_formulas,
    parse_formula,
    parse_formulas,
)

needs_parser = pytest.mark.usefixtures("parser")


@pytest.fixture
def parser() -> None:
    pytest.importorskip("latex2mathml", reason="latex2mathml parses the LaTeX")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \(x + 1\) and \[y\]", {r"\(x + 1\)", r"\[y\]"}),
        ("so $x$ and $$y\n= 1$$.", {"$x$", "$$y\n= 1$$"}),
        (r"it is \boxed{\frac{1}{\sqrt{2}}}!", {r"\boxed{\frac{1}{\sqrt{2}}}"}),
        ("It costs $5 and $6, or $7.50 in all; $8-$9 at most.", set()),
        ("a $ b $ c", set()),
        ("$x\ny$", set()),
        (r"\boxed{", set()),
        (r"so \begin{align*}a&=b\end{align*} ends", {r"\begin{align*}a&=b\end{align*}"}),
        (r"\begin{verse}a\end{verse}", set()),
    ],
)
def test_formulas_are_found_and_money_is_not(text: str, found: set[str]) -> None:
    assert find_formulas([text]) == found


@needs_parser
def test_a_formula_is_a_tree() -> None:
    fraction = ["mfrac", {}, ["mrow", {}, ["mn", {}, "1"]], ["mrow", {}, ["mi", {}, "x"]]]
    wanted = ["math", {"display": "inline"}, ["mrow", {}, fraction, ["mo", {}, "<"]]]
    assert parse_formula(r"\(\frac{1}{x} <\)") == wanted
    block = parse_formula("$$2$$")
    assert block == ["math", {"display": "block"}, ["mrow", {}, ["mn", {}, "2"]]]
    assert parse_formulas({"$2$", r"$\frac{$"}).keys() == {"$2$"}


@needs_parser
def test_limits_stand_below_and_rows_below_each_other() -> None:
    _, _, (_, _, limit) = parse_formula(r"\[\limsup_n\]") or []
    assert limit == [
        "munder", {}, ["mo", {"movablelimits": "true"}, "lim\u2006sup"], ["mi", {}, "n"]
    ]  # fmt: skip
    assert parse_formula(r"\(x_n\)") == [
        "math", {"display": "inline"},
        ["mrow", {}, ["msub", {}, ["mi", {}, "x"], ["mi", {}, "n"]]],
    ]  # fmt: skip
    rows = r"a &= b \\ &= c"
    aligned = parse_formula(rf"\begin{{align*}}{rows}\end{{align*}}")
    assert [tag for tag, _ in parts(aligned)].count("mtr") == 2
    for name in ("aligned", "split"):
        assert parse_formula(rf"\[\begin{{{name}}}{rows}\end{{{name}}}\]") == aligned


def parts(tree: Any) -> list[tuple[str, dict[str, str]]]:
    if isinstance(tree, str):
        return []
    tag, attributes, *children = tree
    return [(tag, attributes), *(part for child in children for part in parts(child))]


@needs_parser
@pytest.mark.parametrize(
    "source",
    [
        r"\(\href{javascript:alert(1)}{x}\)",
        r"\(\style{background: url(http://a)}{x}\)",
        r"\(\class{skip}{x}\)",
        r"\(\color{red}{x}\)",
        r"\(\text{<script>alert(1)</script><img src=x onerror=alert(1)>}\)",
        r"\(\hspace{99999em} x\)",
    ],
)
def test_a_hostile_formula_brings_nothing_but_mathematics(source: str) -> None:
    tree = parse_formula(source)
    for tag, attributes in parts(tree):
        assert tag in _TAGS
        assert set(attributes) <= set(_ALLOWED)
        assert not any(
            sign in value for value in attributes.values() for sign in (":", "(", "9999")
        )


@needs_parser
@pytest.mark.parametrize(
    "source",
    [
        r"\(\frac{1}\)",
        r"\(\left( x\)",
        r"\(\nosuchcommand{x}\)",
        r"\(\def\a{\b\b}\a\)",
        r"\(\newcommand{\a}{xx}\a\)",
        rf"\({'x' * 2001}\)",
        rf"\({'{' * 60}x{'}' * 60}\)",
    ],
)
def test_what_cannot_be_parsed_stays_text(source: str) -> None:
    assert parse_formula(source) is None


@pytest.mark.timeout(20)
def test_a_text_of_nothing_but_openings_costs_no_time() -> None:
    for opening in (r"\(", r"\[", "$$ ", r"\boxed{", "$a"):
        find_formulas([opening * 10_000])
