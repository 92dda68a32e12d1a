"""What the page looks like: contrast, room on a phone, print, mathematics."""

from __future__ import annotations

import pytest

from tests.evaluate.trace.conftest import Open
from tests.evaluate.trace.records import STEPS, record, step, three_answers

CONTRASTS = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (colour) => {
    const [r, g, b] = rgba(colour).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const back = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (rgba(colour)[3] === 255) return colour;
    }
    return "white";
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("script, option")) continue;
    const [a, b] = [getComputedStyle(element).color, back(element)].map(luminance);
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([element.className || element.tagName, walker.currentNode.data, contrast]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_every_text(open_page: Open, scheme: str) -> None:
    samples = [{"text": "x", "found": "8", "correct": False, "reward": 0.5}]
    page = open_page([record("q", STEPS, samples=samples), *three_answers()], color_scheme=scheme)
    page.locator(".slider input").fill("0.4")
    page.keyboard.press("o")
    page.locator(".pair").wait_for()
    texts = page.evaluate(CONTRASTS)
    assert len(texts) > 60
    assert [text for text in texts if text[2] < 4.5] == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    page.locator("#theme").click()
    assert page.locator("#theme").inner_text() == "Colours: dark"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == background) == (scheme == "dark")


def test_phone(open_page: Open) -> None:
    long = record("q" * 80, [step("x" * 400), *STEPS], text="y" * 300)
    page = open_page([long, *three_answers()], is_mobile=True, has_touch=True)
    page.set_viewport_size({"width": 360, "height": 700})
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits) and not page.locator("main").is_visible()
    page.locator(".row").first.tap()
    page.keyboard.press("o")
    assert page.locator("main").is_visible() and not page.locator("nav").is_visible()
    assert page.evaluate(fits)
    assert page.evaluate("reading.scrollWidth <= reading.clientWidth")
    page.get_by_role("button", name="← Answers").tap()
    assert page.locator("nav").is_visible()


def test_print_shows_the_answer_unfolded(open_page: Open) -> None:
    page = open_page([record("q", STEPS)], color_scheme="dark")
    page.emulate_media(media="print")
    unfolded = page.evaluate(
        """() => {
          dispatchEvent(new Event("beforeprint"));
          return document.querySelectorAll(".pair").length;
        }"""
    )
    assert unfolded == 1  # at once: the browser does not wait before it prints
    assert page.locator(".pair").is_visible() and not page.locator("nav").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_mathematics_is_drawn(open_page: Open) -> None:
    pytest.importorskip("latex2mathml", reason="latex2mathml parses the LaTeX")
    made = record("q", [step(r"So \(\frac{1}{2}\), and \(\frac{\), or $5 and $6.")])
    page = open_page([made | {"found": r"\frac{1}{2}"}])
    assert page.locator("article .verdict mfrac").count() == 1
    text = page.locator("main .step .text")
    assert text.locator("math").count() == 1
    box = text.locator("mfrac").bounding_box()
    inner = [text.locator("mn").nth(i).bounding_box() for i in (0, 1)]
    assert inner[0]["y"] + inner[0]["height"] <= inner[1]["y"] + 1 and box["height"] > 10
    assert r"and \(\frac{\), or $5 and $6." in text.inner_text()
