"""The documents of this repository, taken apart: code blocks, inline code, links, headings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PLACES = ("*.md", "docs/*.md", "bench/*.md", "rsd_engine/demo/checkpoints/*.md")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Document:
    """One Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """The text without its code blocks."""
        return _BLOCK.sub("", self.text)

    @property
    def inline_code(self) -> list[str]:
        return _INLINE.findall(self.prose)

    @property
    def links(self) -> list[str]:
        return _LINK.findall(_INLINE.sub("", self.prose))

    @property
    def anchors(self) -> set[str]:
        """What GitHub makes of the headings."""
        headings = _HEADING.findall(self.prose)
        return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}

    def blocks(self, language: str) -> list[str]:
        """The code blocks of one language; "" for those without."""
        return [code for found, code in _BLOCK.findall(self.text) if found == language]

    def table_after(self, heading: str) -> list[list[str]]:
        """The cells of the first table behind a line of text, without header and rule."""
        _, found, rest = self.text.partition(heading)
        assert found, f"{self.name} has no {heading!r}"
        lines = rest[rest.index("\n|") + 1 :].partition("\n\n")[0].splitlines()
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def document(name: str) -> Document:
    return Document(ROOT / name)


DOCUMENTS = [Document(path) for place in _PLACES for path in sorted(ROOT.glob(place))]
