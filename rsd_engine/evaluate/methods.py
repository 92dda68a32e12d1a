"""The methods that are compared, in one place: how each asks the engine, and takes its answer.

A method is written as `NAME`, `NAME@N` or `NAME@N:MORE`, such as `best@8:min`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rsd_engine.evaluate.choosing import AGGREGATES, Choose, best_of, majority
from rsd_engine.sampling_params import SamplingParams
from rsd_engine.steps.policies import Constant, Policy, Threshold, parse_policy
from rsd_engine.steps.scorers import Scorer, TargetJudge
from rsd_engine.steps.selection import GSI, MAX_CANDIDATES, Beam, Best

_ALL_KEPT = Constant(1.0)
_SAMPLES, _CANDIDATES, _WIDTH = 8, 4, 4  # where a method is written without numbers


@dataclass(frozen=True)
class Decoding:
    """What all methods share.

    Attributes:
        single: of methods that write one answer.
        several: of methods that draw several answers, or several candidates of a step.
    """

    single: SamplingParams
    several: SamplingParams


@dataclass(frozen=True)
class Trial:
    """A method with all that it takes.

    Attributes:
        method: as it was written, such as "best@8:min".
        settings: what it took, such as {"threshold": 0.7}; goes into its records.
        params: of each request, but for the seed.
        choose: takes one of the request's samples; None where there is one.
        aggregate: how the rewards of a sample's steps become one; None where nothing needs that.
    """

    method: str
    settings: Mapping[str, Any]
    params: SamplingParams
    choose: Choose | None = None
    aggregate: str | None = None


@dataclass(frozen=True)
class Written:
    """A method as it was written: the number behind @, and what follows the colon."""

    text: str
    number: int | None
    more: str

    def count(self, default: int, most: int) -> int:
        """The number; ValueError unless it is in [1, `most`]."""
        found = default if self.number is None else self.number
        if not 1 <= found <= most:
            raise ValueError(f"method {self.text!r} has {found}; the number must be in [1, {most}]")
        return found


Make = Callable[[Written, float, Decoding], Trial]


@dataclass(frozen=True)
class Method:
    """One way to answer.

    Attributes:
        form: how it is written.
        does: in one line.
        source: where it is described.
        make: from how it was written and a threshold to what it asks of the engine.
        sweeps: whether it is tried at every threshold, if it is written as the name alone.
        scorer: of the engine, without which it is another method.
    """

    form: str
    does: str
    source: str
    make: Make
    sweeps: bool = False
    scorer: type[Scorer] | None = None

    @property
    def name(self) -> str:
        return self.form.partition("@")[0].partition("[")[0]


def _target(written: Written, threshold: float, decoding: Decoding) -> Trial:
    return Trial(written.text, {}, replace(decoding.single, mode="target"))


def _draft(written: Written, threshold: float, decoding: Decoding) -> Trial:
    return Trial(written.text, {}, replace(decoding.single, mode="draft"))


def _speculative(written: Written, threshold: float, decoding: Decoding) -> Trial:
    params = replace(decoding.single, mode="target", speculate="draft")
    return Trial(written.text, {}, params)


def _majority(written: Written, threshold: float, decoding: Decoding) -> Trial:
    n = written.count(_SAMPLES, 1024)
    params = replace(decoding.several, mode="draft", n=n)
    return Trial(written.text, {"n": n}, params, majority)


def _best(written: Written, threshold: float, decoding: Decoding) -> Trial:
    """The draft's steps are all kept, and scored on the way, as far as the PRM's context goes."""
    n, aggregate = written.count(_SAMPLES, 1024), written.more or "last"
    if aggregate not in AGGREGATES:
        raise ValueError(
            f"method {written.text!r} ends with {aggregate!r}; rewards are taken together as one "
            f"of {', '.join(AGGREGATES)}"
        )
    params = replace(decoding.several, mode="rsd", policy=_ALL_KEPT, n=n, prm_overflow="accept")
    settings = {"n": n, "aggregate": aggregate}
    return Trial(written.text, settings, params, best_of(aggregate), aggregate)


def _process(written: Written, threshold: float, decoding: Decoding) -> Trial:
    n = written.count(_CANDIDATES, MAX_CANDIDATES)
    params = replace(
        decoding.several, mode="rsd", policy=_ALL_KEPT, step_candidates=n, select=Best()
    )
    return Trial(written.text, {"candidates": n}, params)


def _beam(written: Written, threshold: float, decoding: Decoding) -> Trial:
    n, width = written.count(_CANDIDATES, MAX_CANDIDATES), written.more or str(_WIDTH)
    if not width.isdecimal():
        raise ValueError(f"method {written.text!r} ends with {width!r}; write the number of beams")
    params = replace(
        decoding.several, mode="rsd", policy=_ALL_KEPT, step_candidates=n, select=Beam(int(width))
    )
    return Trial(written.text, {"candidates": n, "width": int(width)}, params)


def _gsi(written: Written, threshold: float, decoding: Decoding) -> Trial:
    n = written.count(_CANDIDATES, MAX_CANDIDATES)
    try:
        select = GSI(*map(float, written.more.split(":"))) if written.more else GSI()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"method {written.text!r} must end with beta and threshold, such as gsi@4:20:10; "
            f"{error}"
        ) from None
    params = replace(decoding.several, mode="rsd", step_candidates=n, select=select)
    settings = {"candidates": n, "beta": select.beta, "threshold": select.threshold}
    return Trial(written.text, settings, params)


def _rsd(written: Written, threshold: float, decoding: Decoding) -> Trial:
    settings: dict[str, Any] = {"threshold": threshold}
    policy: Policy = Threshold(threshold)
    if written.more:
        policy = parse_policy(written.more)
        settings = {"policy": written.more}
    return Trial(written.text, settings, replace(decoding.single, mode="rsd", policy=policy))


def _rsd_guesses(written: Written, threshold: float, decoding: Decoding) -> Trial:
    trial = _rsd(written, threshold, decoding)
    return replace(trial, params=replace(trial.params, speculate="rejected+draft"))


_PAPER = "Liao et al. 2025 (RSD)"
METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("target", "the target alone", f"{_PAPER}, table 2", _target),
        Method("draft", "the draft alone", f"{_PAPER}, table 3", _draft),
        Method(
            "speculative",
            "the target, whose tokens the draft guesses; its text is the target's",
            "Leviathan et al. 2023, section 2",
            _speculative,
        ),
        Method(
            "majority@N",
            f"the answer that most of the draft's N solutions give (N: {_SAMPLES})",
            "Wang et al. 2023 (self-consistency), section 2",
            _majority,
        ),
        Method(
            f"best@N[:{'|'.join(AGGREGATES)}]",
            f"of the draft's N solutions that with the highest reward (N: {_SAMPLES}, last)",
            "Lightman et al. 2023, section 2",
            _best,
        ),
        Method(
            "process@N",
            f"of N candidates the best step, step by step, without the target (N: {_CANDIDATES})",
            f"{_PAPER}, table 3 (process best-of-N)",
            _process,
        ),
        Method(
            "beam@N[:WIDTH]",
            f"step beam search: WIDTH beams, N candidates each (N: {_CANDIDATES}, WIDTH: {_WIDTH})",
            "Snell et al. 2024, section 5.1",
            _beam,
        ),
        Method(
            "gsi@N[:BETA:THRESHOLD]",
            f"candidates drawn as if the target had written them (N: {_CANDIDATES}, 20, 10)",
            "Geuter et al. 2026 (GSI)",
            _gsi,
        ),
        Method(
            "judge",
            "RSD with the target as judge in place of a PRM; needs --scorer judge",
            "Pan et al. 2025 (SpecReason)",
            _rsd,
            sweeps=True,
            scorer=TargetJudge,
        ),
        Method(
            "rsd[:POLICY]",
            "steps of the draft below a threshold are rewritten by the target; or another policy",
            f"{_PAPER}, algorithm 1 and table 1",
            _rsd,
            sweeps=True,
        ),
        Method(
            "rsd+guesses[:POLICY]",
            "the same, the rewrite guessed from the rejected step and the draft",
            f"{_PAPER}, algorithm 1, with Leviathan et al. 2023",
            _rsd_guesses,
            sweeps=True,
        ),
    )
}


def make_trials(
    texts: Sequence[str],
    thresholds: Sequence[float],
    decoding: Decoding,
    scorer: Scorer | None = None,
) -> list[Trial]:
    """What is tried, in order: each method, at each threshold where it takes one.

    Args:
        texts: the methods as they are written.
        thresholds: at least one.
        scorer: the engine's, in place of a PRM.

    Raises:
        ValueError: a method is unknown, is written wrongly, comes twice, or needs another scorer.
    """
    found: list[Trial] = []
    for text in texts:
        method, written = _read(text)
        if method.scorer is not None and not isinstance(scorer, method.scorer):
            raise ValueError(
                f"method {text!r} needs an engine whose scorer is {method.scorer.title}; give "
                "--scorer judge and no --prm, or leave it out"
            )
        swept = thresholds if method.sweeps and not written.more else thresholds[:1]
        found += [method.make(written, threshold, decoding) for threshold in swept]
    seen: list[tuple[str, Mapping[str, Any]]] = []
    for trial in found:
        if (trial.method, trial.settings) in seen:
            raise ValueError(f"method {trial.method!r} comes twice with {dict(trial.settings)}")
        seen.append((trial.method, trial.settings))
    return found


def _read(text: str) -> tuple[Method, Written]:
    head, colon, more = text.partition(":")
    name, at, number = head.partition("@")
    method = METHODS.get(name)
    if method is None:
        raise ValueError(f"method {text!r} is unknown; allowed: {', '.join(_forms())}")
    if bool(at) > ("@N" in method.form) or (at and not number.isdecimal()):
        raise ValueError(f"method {text!r} is written wrongly; write {method.form}")
    if bool(colon) > ("[:" in method.form) or (colon and not more):
        raise ValueError(f"method {text!r} is written wrongly; write {method.form}")
    return method, Written(text, int(number) if at else None, more)


def _forms() -> list[str]:
    return [method.form for method in METHODS.values()]
