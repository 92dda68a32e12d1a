"""A real browser that opens pages made of records."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rsd_engine.evaluate.trace.page import Run, make_page

Open = Callable[..., Any]
DESKTOP = {"width": 1280, "height": 800}
_NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Chromium, one for all tests: the system's, or else playwright's own. Skips without any."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    installed = next(filter(None, map(shutil.which, _NAMES)), None)
    with playwright.sync_playwright() as driver:
        if installed is None and not Path(driver.chromium.executable_path).exists():
            pytest.skip("no Chromium: neither the system nor playwright has one")
        chromium = driver.chromium.launch(executable_path=installed)
        yield chromium
        chromium.close()


@pytest.fixture
def faults() -> list[str]:
    """What the page complained of, and what it tried to load."""
    return []


@pytest.fixture
def open_page(browser: Any, tmp_path: Path, faults: list[str]) -> Iterator[Open]:
    """Opens the page of one or two lists of records; fails if there are faults at the end."""
    contexts = []

    def open_them(*runs: list[dict[str, Any]], **settings: Any) -> Any:
        path = tmp_path / "page.html"
        names = ("first.jsonl", "second.jsonl")
        named = [Run(name, records) for name, records in zip(names, runs, strict=False)]
        path.write_text(make_page(named).html, encoding="utf-8")
        context = browser.new_context(**{"viewport": DESKTOP, **settings})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda r: None if r.url == path.as_uri() else faults.append(r.url))
        page.goto(path.as_uri())
        return page

    yield open_them
    for context in contexts:
        context.close()
    assert faults == []
