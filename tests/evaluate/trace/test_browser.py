"""The page in a real browser: what a reader sees and can do."""

from __future__ import annotations

from typing import Any

import pytest

from tests.evaluate.trace.conftest import Open
from tests.evaluate.trace.records import (
    HOSTILE,
    STEPS,
    many_records,
    record,
    step,
    three_answers,
)


def listed(page: Any) -> list[str]:
    return list(page.locator(".row .row-id").all_inner_texts())


def heading(page: Any) -> str:
    return str(page.locator("main h2").inner_text()).removesuffix(" #")


def test_what_models_wrote_is_text_and_runs_nothing(open_page: Open) -> None:
    hostile = [step(HOSTILE), step(HOSTILE, rejected=(HOSTILE, 0.1))]
    samples = [{"text": HOSTILE, "found": HOSTILE, "correct": False, "reward": 0.5}]
    made = record(HOSTILE, hostile, text=HOSTILE, samples=samples, method=HOSTILE, correct=False)
    page = open_page([made | {"found": HOSTILE}])
    page.keyboard.press("o")
    page.locator(".sample .text").wait_for()
    assert page.locator("main .step .text").first.inner_text() == HOSTILE
    assert HOSTILE in page.locator(".sample .text").inner_text()
    assert page.title() == "RSD trace"
    assert page.locator("main img, main script, nav img, nav script").count() == 0


def test_an_inserted_script_is_refused_by_the_policy(open_page: Open, faults: list[str]) -> None:
    page = open_page([record("q", STEPS)])
    refused = page.evaluate(
        """() => new Promise((resolve) => {
          document.addEventListener("securitypolicyviolation", (e) => resolve(e.violatedDirective));
          const script = document.createElement("script");
          script.textContent = "document.title = 'run'";
          document.body.append(script);
          setTimeout(() => resolve("nothing was refused"), 2000);
        })"""
    )
    assert refused.startswith("script-src") and page.title() == "RSD trace"
    assert "Content Security Policy" in faults.pop()


def test_steps_say_who_wrote_them_and_differing_words_are_marked(open_page: Open) -> None:
    page = open_page([record("q", STEPS)])
    steps = page.locator("main .steps > .step")
    assert steps.locator("> header .badge").all_inner_texts() == ["draft", "target", "draft"]
    assert "reward 0.95" in steps.nth(0).inner_text()
    assert page.locator("main del").count() == 0
    page.locator("details.rejected summary").click()
    page.locator(".pair").wait_for()
    assert page.locator("main del").all_inner_texts() == ["6"]
    assert page.locator("main ins").all_inner_texts() == ["5"]
    page.locator("details.candidates summary").click()
    page.locator(".candidates .text").wait_for()
    assert page.locator(".candidates .text").all_inner_texts() == ["It is 9."]
    heights = page.locator(".strip i").evaluate_all("all => all.map((i) => i.style.height)")
    assert heights == ["95%", "40%", "75%"]
    assert page.locator(".foot").all_inner_texts() == ["D", "T", "D"]


def test_differing_words(open_page: Open) -> None:
    page = open_page([record("q", [step(".")])])
    for draft, rewrite, removed, added in (
        ("a b c", "a b c", [], []),
        ("a b c d", "a x c", ["b", "d"], ["x"]),
        ("the the cat", "the cat", ["the"], []),
        ("it is 3.5.", "it is 3.25.", ["3.5"], ["3.25"]),
        ("so $x + 1$ is", "so $x + 2$ is", ["$x + 1$"], ["$x + 2$"]),
        ("", "new words", [], ["new words"]),
    ):
        marked = page.evaluate(
            """([a, b]) => {
              const words = [splitWords(a), splitWords(b)];
              const differs = differingWords(...words);
              return words.map((list, i) => make("p", null, makeMarked(list, differs[i], "b")))
                .map((p) => [p.textContent, [...p.querySelectorAll("b")].map((b) => b.innerText)]);
            }""",
            [draft, rewrite],
        )
        assert marked == [[draft, removed], [rewrite, added]]


def test_filters_order_and_search(open_page: Open) -> None:
    page = open_page(three_answers())
    assert listed(page) == ["q1", "q2", "q3"]
    assert page.locator("#count").inner_text() == "3 answers, 2 right (66.7 %)"
    page.select_option("#verdict", "wrong")
    assert listed(page) == ["q2"] and heading(page) == "Question q2"
    page.select_option("#verdict", "rejected")
    assert listed(page) == ["q2", "q3"]
    page.select_option("#verdict", "all")
    page.select_option("#order", "rejections")
    assert listed(page) == ["q2", "q3", "q1"]
    page.select_option("#order", "drop")  # 0.5, then 0.55 in q3: 0.95 to 0.4, rejected
    assert listed(page) == ["q3", "q2", "q1"]
    page.select_option("#method", "other")
    assert listed(page) == ["q2"]
    page.select_option("#method", "")
    page.fill("#search", "PLUMS 6.")  # in the question, and in a rejected draft
    assert listed(page) == ["q3"]
    page.fill("#search", "nowhere")
    assert listed(page) == [] and "No answer fits" in page.locator("main").inner_text()


def test_keys(open_page: Open) -> None:
    page = open_page(three_answers())
    for key, wanted in (("j", "q2"), ("j", "q3"), ("j", "q3"), ("k", "q2")):
        page.keyboard.press(key)
        assert heading(page) == f"Question {wanted}"
    assert page.locator("#list").get_attribute("aria-activedescendant") == "row-1"
    page.keyboard.press("/")
    page.keyboard.type("jk")
    assert page.input_value("#search") == "jk"
    page.fill("#search", "")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowDown")
    assert heading(page) == "Question q2"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "reading"
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()


def test_a_link_leads_to_an_answer(open_page: Open) -> None:
    page = open_page(three_answers())
    page.keyboard.press("j")
    page.get_by_role("link", name="Link to this answer").click()
    assert page.url.endswith("page.html#answer-2")
    page.keyboard.press("k")
    page.reload()
    assert heading(page) == "Question q2"


def test_another_threshold(open_page: Open) -> None:
    page = open_page(three_answers())
    page.keyboard.press("End")
    page.keyboard.press("j")
    page.keyboard.press("j")
    slider = page.locator(".slider input")
    assert slider.input_value() == "0.7"
    slider.fill("0.4")
    # of 0.9 0.8, 0.6 0.1, 0.95 0.4 0.75: all but 0.1, where 0.9 0.8 0.95 0.75 were
    assert "at 0.40: 6 of 7 draft steps kept (as it ran: 4), 2 answers decided otherwise" in (
        page.locator("#count").inner_text()
    )
    said = page.locator("main .steps .what-if").all_inner_texts()
    assert said == ["kept at 0.40", "kept at 0.40: another decision", "kept at 0.40"]
    summary = page.locator(".what-if-sum").inner_text()
    assert summary.startswith("At 0.40, 3 of 3 draft steps kept (as it ran: 2). 1 decision changes")
    assert "Decisions only" in page.locator(".slider").inner_text()
    slider.fill("0.41")
    assert "rejected at 0.41" in page.locator("main .steps .what-if").nth(1).inner_text()
    page.get_by_role("button", name="As it ran").click()
    assert page.locator("#count").inner_text() == "3 answers, 2 right (66.7 %)"


def test_the_slider_by_keyboard(open_page: Open) -> None:
    page = open_page([record("q", STEPS)])
    slider = page.get_by_role("slider", name="Another threshold")
    assert slider.get_attribute("aria-valuetext") == "as it ran"
    line = page.locator(".threshold-line")
    as_it_ran = line.bounding_box()
    slider.focus()
    for key, wanted in (("ArrowRight", "0.71"), ("Home", "0.00"), ("End", "1.00")):
        page.keyboard.press(key)
        assert slider.get_attribute("aria-valuetext") == wanted
    assert line.bounding_box()["y"] < as_it_ran["y"]
    page.keyboard.press("j")  # keys of the page, too
    assert page.evaluate("document.activeElement.type") == "range"


def test_costs_by_role(open_page: Open) -> None:
    old = record("q2", STEPS)
    del old["role_seconds"]
    page = open_page([record("q1", STEPS, seconds=9.0), old])
    costs = """() => [...document.querySelectorAll(".costs tr")].map((row) =>
      [...row.cells].map((cell) => cell.innerText.replace("\xa0", " ")).filter((text) => text))"""
    assert page.evaluate(costs) == [
        ["tokens", "time"], ["draft", "30", "100 ms"], ["target", "10", "250 ms"],
        ["PRM (read)", "60", "50.0 ms"], ["discarded", "5"],
    ]  # fmt: skip
    widths = page.locator(".costs .fill").evaluate_all("all => all.map((one) => one.style.width)")
    assert [float(width.rstrip("%")) for width in widths] == pytest.approx(
        [50, 40, 100 / 6, 100, 100, 20, 100 / 12], rel=1e-5
    )
    figures = page.locator(".figures")
    assert figures.inner_text().replace("\xa0", " ") == (
        "2 draft steps kept, 1 rejected · 1 GFLOPs for what was written · "
        "10 GFLOPs for all that was read · 400 ms in passes"
    )
    page.keyboard.press("j")
    assert page.evaluate(costs)[:2] == [["tokens"], ["draft", "30"]]
    assert figures.inner_text().endswith("· 500\xa0ms")
    none = {"draft": 0, "target": 0, "prm": 0}
    failed = record("q3", [], counts={}, role_seconds=none, error="no pages")
    assert open_page([failed]).locator(".costs").count() == 0


def test_two_runs_side_by_side(open_page: Open) -> None:
    other = record("q3", [step("Another way.")], text="Plums?", correct=False)
    page = open_page(three_answers(), [other])
    assert listed(page) == ["q1", "q2", "q3"]
    assert page.locator("main article").count() == 1
    page.select_option("#verdict", "differ")
    assert listed(page) == ["q3"]
    notes = page.locator("main article > header .note").all_inner_texts()
    assert notes == ["first.jsonl · seed 0", "second.jsonl · seed 0"]
    boxes = [page.locator("main article").nth(i).bounding_box() for i in (0, 1)]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"] and boxes[0]["y"] == boxes[1]["y"]
    page.select_option("#verdict", "all")
    page.select_option("#run", "1")
    assert listed(page) == ["q3"]


SEARCHES = """async () => {
  const search = document.getElementById("search");
  const taken = [];
  for (const text of ["t", "to", "total", "total left", "zzz", "q01"]) {
    const start = performance.now();
    search.value = text;
    search.dispatchEvent(new Event("input", { bubbles: true }));
    document.body.getBoundingClientRect();
    taken.push(performance.now() - start);
  }
  return taken;
}"""
LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_many_answers(open_page: Open, count: int) -> None:
    """Milliseconds until the first answer is there, and until each letter of a search is met."""
    page = open_page(many_records(count))
    assert 0 < page.evaluate(LOADED) < 2000
    assert page.locator(".row").count() < 60
    milliseconds = page.evaluate(SEARCHES)
    assert sorted(milliseconds)[len(milliseconds) // 2] < 100
    page.fill("#search", "")
    page.locator("#list").focus()
    page.keyboard.press("End")
    assert heading(page) == f"Question q{count - 1:05}"
    assert page.locator(f"#row-{count - 1}").is_visible() and page.locator(".row").count() < 60
    page.keyboard.press("/")
    page.keyboard.type("q0010")
    assert page.locator("#count").inner_text().startswith("10 answers")
