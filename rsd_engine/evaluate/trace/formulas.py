"""LaTeX in texts of models, as trees of MathML that a page can build without parsing markup.

`latex2mathml` parses the LaTeX. Only elements and attributes listed here are taken from what it
makes, and what it cannot parse stays text, so nothing that a model writes becomes markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any
from xml.etree.ElementTree import Element

Tree = list[Any]
"""[tag, {attribute: value}, *children]; a child is a tree or text."""

_MOST_CHARACTERS = 2000  # of a formula; a longer one stays text
_MOST_LEVELS = 50  # of a tree
_OUTER = r"(?:align|equation|gather|multline|eqnarray)\*?"  # environments that need no delimiters
# A dollar opens before what is no space and closes behind it, not before a digit, so that "$5 and
# $6" stays money. JavaScript reads the same pattern.
FORMULA = (
    rf"\\\(.{{1,{_MOST_CHARACTERS}}}?\\\)|\\\[.{{1,{_MOST_CHARACTERS}}}?\\\]"
    rf"|\$\$.{{1,{_MOST_CHARACTERS}}}?\$\$|\$(?![\s$])[^$\n]*[^\s$\\]\$(?!\d)"
    rf"|\\begin\{{{_OUTER}\}}.{{1,{_MOST_CHARACTERS}}}?\\end\{{{_OUTER}\}}"
    r"|\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
)
_FORMULA = re.compile(FORMULA, re.DOTALL)
_DELIMITERS = ((r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("$", "$"))
_DISPLAY = (r"\[", "$$", r"\begin")
# Environments of rows that latex2mathml does not know, but for this one.
_ROWS = re.compile(r"\\(begin|end)\{(?:aligned|split|gathered|(?:gather|multline|eqnarray)\*?)\}")
# Definitions may expand without end.
_DEFINES = re.compile(r"\\(?:def|(?:re)?newcommand|newenvironment|DeclareMathOperator)\b")
_ENTITY = re.compile(r"&#x([0-9A-Fa-f]{2,6});")  # how latex2mathml names a character

_TAGS = frozenset(
    {
        "math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msqrt", "mroot", "mstyle",
        "msub", "msup", "msubsup", "munder", "mover", "munderover", "mtable", "mtr", "mtd",
        "menclose", "mpadded", "mphantom",
    }
)  # fmt: skip
_ARITIES = {
    "mfrac": 2, "mroot": 2, "msub": 2, "msup": 2, "msubsup": 3,
    "munder": 2, "mover": 2, "munderover": 3,
}  # fmt: skip
_ATTRIBUTES = {
    name: re.compile(values)
    for name, values in {
        "display": "inline|block",
        "displaystyle|fence|stretchy|accent|largeop|movablelimits": "true|false",
        "form": "prefix|infix|postfix",
        "mathvariant": "[a-z-]{1,30}",
        "notation": "[a-z ]{1,40}",
        "scriptlevel": "[+-]?[0-3]",
        "columnalign": "(?:left|right|center| ){1,100}",
        "linethickness|minsize|maxsize|width|height|depth|lspace|rspace|voffset": (
            r"-?\d?(?:\.\d{1,4})?(?:em|ex|px|pt)?"
        ),
    }.items()
}
# What stands below or above these, where there is room: latex2mathml sets it at their side.
_WITH_LIMITS = ("lim", "max", "min", "sup", "inf", "lim\u2006sup", "lim\u2006inf")
_LIMITS = {"msub": "munder", "msup": "mover", "msubsup": "munderover"}
_ALLOWED = {name: values for names, values in _ATTRIBUTES.items() for name in names.split("|")}


def can_parse() -> bool:
    """Whether latex2mathml is installed."""
    return find_spec("latex2mathml") is not None


def find_formulas(texts: Iterable[str]) -> set[str]:
    """All formulas of these texts, with their delimiters."""
    return {match for text in texts for match in _FORMULA.findall(text)}


def parse_formulas(sources: Iterable[str]) -> dict[str, Tree]:
    """Trees of formulas by their source, in its order; those that cannot be parsed are left out."""
    parsed = ((source, parse_formula(source)) for source in sorted(sources))
    return {source: tree for source, tree in parsed if tree is not None}


def parse_formula(source: str) -> Tree | None:
    """The tree of a formula with its delimiters; None if it must stay text."""
    from latex2mathml.converter import Converter

    if len(source) > _MOST_CHARACTERS or _DEFINES.search(source):
        return None
    display = "block" if source.startswith(_DISPLAY) else "inline"
    try:
        return _tree(Converter(display=display).convert_to_element(_inner(source)), _MOST_LEVELS)
    except Exception:  # it raises many kinds, StopIteration and IndexError among them
        return None


def _inner(source: str) -> str:
    source = _ROWS.sub(r"\\\1{align*}", source)
    for start, end in _DELIMITERS:
        if source.startswith(start) and source.endswith(end):
            return source[len(start) : -len(end)]
    return source


def _tree(element: Element, levels: int) -> Tree:
    """Raises ValueError for an element not allowed or incomplete, and for an unknown command."""
    if element.tag not in _TAGS or not levels:
        raise ValueError(f"<{element.tag}> is not allowed")
    if _ARITIES.get(element.tag, len(element)) != len(element):
        raise ValueError(f"<{element.tag}> has {len(element)} parts")
    text = _ENTITY.sub(lambda match: chr(int(match[1], 16)), element.text or "")
    if re.match(r"\\[A-Za-z]", text):
        raise ValueError(f"unknown command {text}")
    attributes = {
        name: value
        for name, value in element.attrib.items()
        if name in _ALLOWED and _ALLOWED[name].fullmatch(value)
    }
    children = [_tree(child, levels - 1) for child in element]
    tag = element.tag
    if tag in _LIMITS and children[0][0] == "mo" and children[0][-1] in _WITH_LIMITS:
        children[0][1]["movablelimits"] = "true"  # to the side again within a line
        tag = _LIMITS[tag]
    return [tag, attributes, *([text] if text else []), *children]
