"""`rsd generate` with one prompt: shows its text as it grows, its steps, or JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from rsd_engine.cli.errors import FAILED, UsageError, print_stderr
from rsd_engine.cli.generate.settings import RunSettings
from rsd_engine.cli.show import StepView, make_console
from rsd_engine.engine.reward_watch import reward_problem

if TYPE_CHECKING:
    from rsd_engine import Engine, RequestOutput, SamplingParams


def read_prompt(argument: str) -> str:
    """The prompt itself; for `-` all of stdin, without its last line break.

    Raises:
        UsageError: the prompt is empty, or stdin is not UTF-8.
    """
    text = argument
    if argument == "-":
        try:
            text = sys.stdin.buffer.read().decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UsageError(f"stdin is not UTF-8 text: {error}") from None
    if not text:
        raise UsageError("the prompt is empty; it needs at least one character")
    return text


def run_one(settings: RunSettings, prompt: str, *, show_steps: bool, as_json: bool) -> int:
    """Answers one prompt; returns the exit code."""
    engine = settings.make_engine()
    params = replace(engine.get_default_sampling_params(), **settings.sampling)
    given = settings.chat.of(engine.get_tokenizer()).engine_prompt({"prompt": prompt})
    result = _answer(engine, given, params, live=not as_json, show_steps=show_steps)
    if as_json:
        _print_json(result)
    elif params.n > 1:
        _print_samples(result, show_steps)
    if show_steps and not as_json:
        print_stderr(_facts(result))
        if problem := reward_problem(result.metrics):
            print_stderr(f"note: {problem}")
    return _report(result)


def _print_json(result: RequestOutput) -> None:
    """Prints one line of JSON, which has to be Unicode: another stdout gets ASCII.

    No other request ran beside this one, so its guesses are facts too.
    """
    from rsd_engine.cli.generate.records import result_record
    from rsd_engine.cli.results.result_line import to_json

    record = result_record(result)
    if result.metrics.guesses.made:
        record["metrics"] |= {
            "flops": result.metrics.flops.generated,
            "guesses": asdict(result.metrics.guesses),
        }
    text = to_json(record)
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    print(text if unicode else json.dumps(json.loads(text)), flush=True)


def _answer(
    engine: Engine, prompt: Any, params: SamplingParams, *, live: bool, show_steps: bool
) -> RequestOutput:
    """Runs the request. With `live` a single sample is shown as it grows."""
    from rsd_engine import StepEvent

    stream = engine.stream(prompt, params)
    view = StepView(make_console()) if live and show_steps and params.n == 1 else None
    for event in stream:
        if not isinstance(event, StepEvent) or not live or params.n > 1:
            continue
        if view is not None:
            view.lost(event.candidates)
            view.event(event)
        elif event.kind == "kept":
            print(event.text, end="", flush=True)
    if view is not None:
        view.end()
    elif live and params.n == 1:
        print(flush=True)
    assert stream.output is not None
    return stream.output


def _print_samples(result: RequestOutput, show_steps: bool) -> None:
    view = StepView(make_console())
    for output in result.outputs:
        view.line(f"--- sample {output.index + 1} of {len(result.outputs)} ---", "bold")
        if not show_steps:
            print(output.text, flush=True)
            continue
        for step in output.steps:
            view.lost(step.candidates)
            if step.rejected is not None:
                view.step("rejected", step.rejected.reward, step.rejected.text)
            view.step(step.source, step.reward, step.text)


def _facts(result: RequestOutput) -> str:
    m = result.metrics
    scored = m.steps_accepted + m.steps_rejected
    c = m.candidates
    chosen = f"{c.taken} of {c.made} candidates taken; " if c.made else ""
    guessed = f" ({m.guesses.kept} of {m.guesses.made} guesses right)" if m.guesses.made else ""
    return (
        f"{chosen}{m.steps_accepted} of {scored} draft steps accepted; tokens: "
        f"{m.draft.tokens_generated} of the draft, {m.draft.tokens_discarded} discarded, "
        f"{m.target.tokens_generated} of the target{guessed}; {m.seconds:.2f} s; "
        f"seed {result.seed}"
    )


def _report(result: RequestOutput) -> int:
    """Says on stderr which samples failed or were cut off; returns the exit code."""
    code = 0
    for output in result.outputs:
        which = f"sample {output.index + 1}: " if len(result.outputs) > 1 else ""
        if output.finish_reason == "error":
            print_stderr(f"error: {which}{output.error}")
            code = FAILED
        elif output.finish_reason in ("length", "steps"):
            limit = "max-steps" if output.finish_reason == "steps" else "max-tokens or the context"
            print_stderr(f"note: {which}cut off at the limit of {limit}")
    return code
