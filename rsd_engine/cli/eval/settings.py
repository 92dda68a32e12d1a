"""What `rsd eval` runs with, checked before any work starts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from rsd_engine.cli.config_file import read_config
from rsd_engine.cli.engine_options import engine_arguments, given
from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.eval.options import AnswerOptions, EvalOptions
from rsd_engine.cli.generate.settings import chat_settings
from rsd_engine.demo import ROLES, checkpoint_dir
from rsd_engine.engine.chat.questions import ChatSettings, settings_text
from rsd_engine.engine.prompts import naming_model
from rsd_engine.engine.rewards.prm_options import PrmOptions
from rsd_engine.evaluate.answers import answers_of
from rsd_engine.evaluate.methods import Decoding, Trial, make_trials
from rsd_engine.evaluate.questions import DEMO, load_questions
from rsd_engine.evaluate.record import Question
from rsd_engine.evaluate.statistics import require_scipy
from rsd_engine.models.checkpoints.open import is_url, open_checkpoint
from rsd_engine.sampling_params import MAX_SEED, SamplingParams
from rsd_engine.steps.policies import Threshold

_SYSTEM = r"Please reason step by step, and put your final answer within \boxed{}."
_MAX_GUESSES = 32
_DEMO_TOKENS = 256

T = TypeVar("T")


@dataclass(frozen=True)
class EvalSettings:
    """A run.

    Attributes:
        engine: arguments of `Engine`.
        digest: of all settings that decide the answers, methods and seeds aside.
    """

    engine: dict[str, Any]
    trials: list[Trial]
    seeds: list[int]
    questions: list[Question]
    chat: ChatSettings
    digest: str
    output: Path


def eval_settings(options: EvalOptions) -> EvalSettings:
    """The settings of a run.

    Raises:
        UsageError: an option is not allowed, or a file cannot be read.
        ImportError: an optional package is missing.
    """
    if options.output is None:
        raise UsageError("--output is missing; give a folder for the results")
    engine = model_arguments(options)
    if "policy" in engine:
        raise UsageError("policy is given; here a policy is part of a method, such as rsd:clip")
    try:
        thresholds = _listed("--threshold", options.threshold, _number)
        seeds = _listed("--seeds", options.seeds, _seed) or [0]
        methods = _listed("--methods", options.methods, str)
        scorer = engine.get("scorer")
        is_demo = options.questions.partition(":")[0] == DEMO
        single = answer_params(options, is_demo=is_demo)
        several = replace(
            single, temperature=options.several_temperature, top_p=options.several_top_p
        )
        decoding = Decoding(single, several)
        trials = make_trials(methods, thresholds or [default_threshold(engine)], decoding, scorer)
        questions = load_questions(options.questions)
    except ValueError as error:
        raise UsageError(str(error)) from None
    require_scipy()
    for kind in {question.kind for question in questions}:
        answers_of(kind)  # what it needs is there
    chat = question_chat(options, is_demo=is_demo)
    digest = settings_digest(engine, [single, several], chat)
    if any(trial.params.speculate for trial in trials):
        engine.setdefault("max_guesses", _MAX_GUESSES)
    return EvalSettings(engine, trials, seeds, questions, chat, digest, options.output)


def model_arguments(options: AnswerOptions) -> dict[str, Any]:
    """The arguments of `Engine`: the options', or, where they name no model, the demo family."""
    config = read_config(options.config)
    if not set(ROLES) & (config.engine | given(options, ROLES)).keys():
        scored = options.scorer is not None or "scorer" in config.engine
        roles = [role for role in ROLES if not (role == "prm" and scored)]
        demo: dict[str, Any] = {role: str(checkpoint_dir(role)) for role in roles}
        config = replace(config, engine=config.engine | demo)
    return engine_arguments(options, config)


def default_threshold(engine: dict[str, Any]) -> float:
    """That of the scorer or the PRM's family that an engine of these arguments has; no weights are
    read.

    Raises:
        ValueError: the PRM is none, or does not tell its family.
    """
    scorer, prm = engine.get("scorer"), engine.get("prm")
    if scorer is not None:
        return float(scorer.default_threshold)
    if prm is None or is_url(prm):
        return Threshold().threshold
    with naming_model("prm"):
        revision = None if Path(prm).expanduser().exists() else engine.get("revision")
        checkpoint = open_checkpoint(prm, revision, weights=False)
        checkpoint.overrides = engine.get("hf_overrides", {}).get("prm", {})
        return PrmOptions(engine.get("prm_format")).family_of(checkpoint).threshold


def settings_digest(
    engine: dict[str, Any], params: Sequence[SamplingParams], chat: ChatSettings
) -> str:
    """Differs for settings that may give other answers."""
    text = settings_text(engine, params, chat)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def answer_params(options: AnswerOptions, *, is_demo: bool) -> SamplingParams:
    """Those of one answer; the demo's are short.

    Raises:
        ValueError: a limit or the temperature is not allowed.
    """
    limits = given(options, ("max_tokens", "max_step_tokens", "max_steps"))
    if is_demo:
        limits.setdefault("max_tokens", _DEMO_TOKENS)
    return SamplingParams(temperature=options.temperature, **limits)


def question_chat(options: AnswerOptions, *, is_demo: bool) -> ChatSettings:
    """How questions become prompts; the demo's models know no instructions."""
    form = given(options, ("chat", "system", "chat_template", "chat_template_kwargs"))
    return chat_settings(form if is_demo else {"system": _SYSTEM, **form})


def _listed(name: str, text: str | None, read: Callable[[str], T]) -> list[T]:
    """The items of a list with commas, all different."""
    if text is None:
        return []
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise UsageError(f"{name} {text!r} has an empty item; write items with commas between them")
    found: list[T] = []
    for item in items:
        value = read(item)
        if value in found:
            raise UsageError(f"{name} has {item!r} twice; write it once")
        found.append(value)
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--threshold must be numbers such as 0.5,0.7, got {text!r}") from None


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_SEED:
        raise UsageError(f"--seeds must be integers in [0, {MAX_SEED}], got {text!r}")
    return int(text)
