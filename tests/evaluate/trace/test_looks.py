"""What the page looks like: pixels, contrast, room on a phone, focus, print, mathematics."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from tests.evaluate.trace.conftest import Open
from tests.evaluate.trace.records import STEPS, record, step, three_answers

PHONE = {"viewport": {"width": 360, "height": 700}, "is_mobile": True, "has_touch": True}
ALL_IN_SIGHT = {"width": 1000, "height": 1400}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": ALL_IN_SIGHT},
    "dark": {"viewport": ALL_IN_SIGHT, "color_scheme": "dark"},
    "phone": {**PHONE, "viewport": {"width": 360, "height": 1800}},
}
SEEN = (
    ".question .text", ".expected", ".badge.target", ".badge.draft", ".foot.target", ".legend",
    ".costs tbody td", ".figures", ".step .number", ".step .text", "summary .reward", ".pair ins",
)  # fmt: skip
CUT_OFF = """() => [...document.querySelectorAll("main *")].filter((one) =>
  one.checkVisibility() && !one.closest(".strip, math") && one.scrollWidth > one.clientWidth + 1 &&
  getComputedStyle(one).overflowX !== "visible").map((one) => one.className)"""


def luminance(colour: Any) -> float:
    """Of red, green and blue of sRGB, as WCAG 2.2 defines it."""
    red, green, blue = (
        v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
        for v in (value / 255 for value in colour[:3])
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def pixel_contrast(image: Image.Image, box: dict[str, float]) -> float:
    """Of what is drawn in a box to its most frequent colour; a few pixels do not count."""
    scale = 2
    left, top = (int(scale * box[name]) for name in ("x", "y"))
    right, bottom = left + int(scale * box["width"]), top + int(scale * box["height"])
    colours = image.crop((left, top, right, bottom)).getcolors(1 << 16)
    assert colours is not None
    back = luminance(max(colours)[1])
    drawn = [luminance(colour) for count, colour in colours if count >= 4]
    return max((max(one, back) + 0.05) / (min(one, back) + 0.05) for one in drawn)


@pytest.mark.parametrize("look", LOOKS)
def test_a_screenshot(open_page: Open, look: str) -> None:
    """What is drawn can be read, and nothing is cut off or broken within a number."""
    counts = {"draft_tokens": 123456, "target_tokens": 1234, "prm_tokens_read": 1234567}
    made = record("q", STEPS, text="Plums?", role_seconds={"draft": 99.5, "target": 0.25, "prm": 0})
    page = open_page(
        [made | {"counts": made["counts"] | counts}, *three_answers()],
        device_scale_factor=2,
        **LOOKS[look],
    )
    if look == "phone":
        page.locator(".row").first.tap()
    page.evaluate("unfoldAll(true)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(CUT_OFF) == []
    lines = page.locator(".costs tr").evaluate_all("all => all.map((row) => row.clientHeight)")
    assert len(lines) == 5 and max(lines) < 1.5 * min(lines)
    places = {selector: page.locator(f"main {selector}").first.bounding_box() for selector in SEEN}
    image = Image.open(io.BytesIO(page.screenshot()))
    back = luminance(image.getpixel((2, image.height - 2)))
    assert back < 0.05 if look == "dark" else back > 0.9
    contrasts = {selector: pixel_contrast(image, box) for selector, box in places.items()}
    assert {selector for selector, contrast in contrasts.items() if contrast < 4.5} == set()


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
    page = open_page([long, *three_answers()], **PHONE)
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits) and not page.locator("main").is_visible()
    page.locator(".row").first.tap()
    page.keyboard.press("o")
    assert page.locator("main").is_visible() and not page.locator("nav").is_visible()
    assert page.evaluate(fits)
    assert page.evaluate("reading.scrollWidth <= reading.clientWidth")
    page.get_by_role("button", name="Next answer").tap()
    assert page.locator("main h2").inner_text() == "Question q1 #"
    assert page.get_by_role("button", name="Previous answer").is_enabled()
    page.get_by_role("button", name="← Answers").tap()
    assert page.locator("nav").is_visible()


NO_NAME = {"", None}
FOCUSED = """() => {
  const { outlineStyle, outlineWidth, outlineColor } = getComputedStyle(document.activeElement);
  return [document.activeElement.tagName, outlineStyle, parseFloat(outlineWidth), outlineColor];
}"""


def test_focus_names_and_landmarks(open_page: Open) -> None:
    page = open_page([record("q", STEPS), *three_answers()])
    for role in ("banner", "navigation", "main", "search"):
        assert page.get_by_role(role).count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    seen = []
    while (focused := page.evaluate(FOCUSED))[0] != "BODY":
        seen.append(focused)
        page.keyboard.press("Tab")
    assert {tag for tag, *_ in seen} >= {"A", "BUTTON", "INPUT", "SELECT", "SUMMARY", "DIV"}
    assert {tuple(rest) for _, *rest in seen} == {("solid", 3, "rgb(11, 87, 208)")}
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node["name"]["value"])
        for node in tree
        if any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", ()))
        and node["role"]["value"] not in ("RootWebArea", "listitem")
    ]
    assert len(named) >= len(seen) - 2
    assert [role for role, name in named if name in NO_NAME] == []


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


def test_a_display_takes_the_breaks_around_it_away(open_page: Open) -> None:
    pytest.importorskip("latex2mathml", reason="latex2mathml parses the LaTeX")
    page = open_page([record("q", [step("So\n\\[x\\], \nand \\(y\\) too.\n\nEnd.")])])
    pieces = page.locator("main .step .text").evaluate(
        "one => [...one.childNodes].map((node) => node.textContent)"
    )
    assert pieces == ["So", "x,", "and ", "y", " too.\n\nEnd."]
