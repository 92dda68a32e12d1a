"""Templates that fail, do not end or take too much; the renderer outlives them all."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from rsd_engine.engine.chat import renderer as module
from rsd_engine.engine.chat.renderer import TemplateRenderer

USER = [{"role": "user", "content": "Hi"}]
LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = (
    "{% set ns = namespace(x='ab') %}"
    "{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"
)


@pytest.fixture(scope="module")
def shared() -> Iterator[TemplateRenderer]:
    made = TemplateRenderer()
    yield made
    made.close()


def render(renderer: TemplateRenderer, template: str) -> str:
    return renderer.render(USER, {"chat_template": template})


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError: Range too big"),
        ("{{ 'x' * 10**10 }}", "needs more than 512 MiB of memory"),
        ("{{ 'x' * 10**18 }}", "needs more than 512 MiB of memory"),
        ("{{ 'x'.center(10**10) }}", "needs more than 512 MiB of memory"),
        ("{{ [0] * 10**9 }}", "needs more than 512 MiB of memory"),
        (DOUBLED, "needs more than 512 MiB of memory"),
        ("{{ 'x' * (3 * 10**7) }}", "wrote 30000000 characters; at most 16777216 are allowed"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{" + "(" * 9999 + "1" + ")" * 9999 + "}}", "RecursionError"),
        ("{% for %}", "TemplateSyntaxError: Expected an expression"),
        ("{% if true %}", "TemplateSyntaxError: Unexpected end"),
        ("{{ raise_exception('first\nsecond') }}", "TemplateError: first second$"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{{ messages[7].content }}", "UndefinedError"),
        ("{{ messages | nosuchfilter }}", "TemplateAssertionError: No filter named"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ messages.__class__.__base__ }}", "SecurityError"),
        ("{% include 'other' %}", "no loader"),
    ],
)
def test_errors_are_one_line(shared: TemplateRenderer, template: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        render(shared, template)
    assert str(error.value).startswith("the chat template cannot use these messages: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    assert render(shared, "{{ messages[0].content }}") == "Hi"


def test_templates_that_do_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_SECONDS", 0.2)
    renderer = TemplateRenderer()
    try:
        for template in (LOOPS, "{{ 10 ** (messages | length * 10**9) }}"):
            with pytest.raises(ValueError, match=r"did not end within 0\.2 seconds"):
                render(renderer, template)
        assert render(renderer, "{{ messages[0].content }}") == "Hi"
    finally:
        renderer.close()


def test_time_is_counted_for_each_conversation_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_SECONDS", 0.2)
    renderer = TemplateRenderer()
    loop = "{% for i in range(99999) %}{% set x = i %}{% endfor %}done"
    try:
        assert {render(renderer, loop) for _ in range(40)} == {"done"}
    finally:
        renderer.close()


def test_a_process_that_was_killed_is_said_and_replaced(shared: TemplateRenderer) -> None:
    render(shared, "first")
    assert shared._process is not None
    os.kill(shared._process.pid, signal.SIGKILL)
    with pytest.raises(ValueError, match="process that ran it ended with exit code -9"):
        render(shared, "second")
    assert render(shared, "third") == "third"


def test_an_interrupt_leaves_no_reply_behind(
    shared: TemplateRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    render(shared, "first")
    process = shared._process
    assert process is not None
    stdout = process.stdout

    class Interrupted:
        def readline(self) -> bytes:
            raise KeyboardInterrupt

        def close(self) -> None:
            assert stdout is not None
            stdout.close()

    monkeypatch.setattr(process, "stdout", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        render(shared, "second")
    monkeypatch.undo()
    assert render(shared, "third") == "third"


def test_threads_share_a_renderer(shared: TemplateRenderer) -> None:
    found: dict[int, str] = {}

    def work(number: int) -> None:
        for _ in range(20):
            found[number] = render(shared, str(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: str(number) for number in range(4)}


def test_it_can_be_closed_at_any_time() -> None:
    renderer = TemplateRenderer()
    renderer.close()
    assert render(renderer, "a") == "a"
    process = renderer._process
    renderer.close()
    renderer.close()
    assert process is not None and process.returncode == 0


def test_control_characters_and_halves_of_characters_pass_through(
    shared: TemplateRenderer,
) -> None:
    message = [{"role": "user", "content": "a\nb\u2028\x00\ud83d\U0001f600"}]
    text = shared.render(message, {"chat_template": "{{ messages[0].content }}"})
    assert text == message[0]["content"]
