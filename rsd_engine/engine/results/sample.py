"""Builds one sample of a request from its events: steps, text and metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice

from rsd_engine.core.events import (
    LostCandidate,
    PromptRead,
    RequestDone,
    StepDecided,
    TokenLogprobs,
)
from rsd_engine.core.failures import Failure
from rsd_engine.engine.requests.rules import WriterTokens
from rsd_engine.engine.results.logprobs import named_logprobs
from rsd_engine.engine.results.metrics import SOURCES, SampleCounts
from rsd_engine.outputs import (
    Candidate,
    CompletionOutput,
    Endings,
    Errors,
    FinishReason,
    Logprob,
    Metrics,
    RejectedStep,
    Step,
    StepEvent,
    StepKind,
)
from rsd_engine.sampling_params import SamplingParams
from rsd_engine.steps.detokenize import Detokenizer, cut_at_stop
from rsd_engine.steps.selection import slots_of
from rsd_engine.steps.vocabulary import Vocabulary
from rsd_kernels.state.enums import Finish, RecordKind, Role

_REASONS: dict[Finish | None, FinishReason] = {
    Finish.STOP_TOKEN: "stop",
    Finish.STOP_STRING: "stop",
    Finish.LENGTH: "length",
    Finish.STEPS: "steps",
    Finish.ERROR: "error",
    Finish.PRM_FULL: "length",
    None: "abort",
}
PRM_CONTEXT = "prm_context"  # the `stop_reason` of an output that the PRM's context ended
_ROLES = {source: role for role, source in SOURCES.items()}


class SampleBuilder:
    """One sample of a request, built step by step."""

    def __init__(
        self,
        request_id: str,
        index: int,
        params: SamplingParams,
        writers: Mapping[Role, WriterTokens],
        *,
        prm_limits: bool = False,  # the length at which it ends is what the PRM's context holds
    ) -> None:
        self.request_id = request_id
        self.index = index
        self.done: RequestDone | None = None
        self.prompt_read: PromptRead | None = None
        self._params = params
        self._writers = writers
        self._prm_limits = prm_limits
        self._detokenizer = Detokenizer(
            next(iter(writers.values())).vocabulary,
            params.skip_special_tokens,
            params.stop_strings,
            params.include_stop_str_in_output,
        )
        self._pieces: list[str] = []
        self._steps: list[Step] = []  # their texts are cut from the whole one in the end
        self._ends: list[int] = []  # characters up to the end of each step
        self._part: list[StepDecided] = []  # what is told of the step being written
        self._rejected: list[RejectedStep] = []
        self._to_rewrite: RejectedStep | None = None  # the next kept step stands in its place
        self._lost: tuple[Candidate, ...] = ()  # against the step being written
        self._logprobs: list[TokenLogprobs] = []
        self._dropped: StepDecided | None = None
        self._failure: Failure | None = None

    @property
    def failed(self) -> bool:
        """Whether its text or steps could not be built; it takes in no more events then."""
        return self._failure is not None

    def fail(self, error: Exception) -> None:
        """Its result could not be built: it ends with this error, and what it had until then."""
        self._failure = Failure.caught("result", "building the result", error)

    def push(self, event: StepDecided) -> StepEvent | None:
        """Takes in a decided step; returns what a stream shows of it."""
        self._lost += tuple(map(self._candidate, event.candidates))
        if event.kind == RecordKind.DROPPED:
            self._dropped = event
            return None
        if event.kind == RecordKind.REJECTED:
            return self._reject(event)
        piece = self._add_text(event)
        self._pieces.append(piece)
        self._logprobs += event.logprobs or ()
        self._part.append(event)
        told = self._event("kept", piece, event)
        if event.kind == RecordKind.KEPT:
            self._end_step()
        return told

    def _add_text(self, event: StepDecided) -> str:
        """What a kept step, or a part of one, adds to the text."""
        ids, vocabulary = event.token_ids, self._writers[event.source].vocabulary
        if not event.finish:
            return self._detokenizer.push(ids, vocabulary)
        if event.finish != Finish.STOP_TOKEN:
            stopped = event.finish == Finish.STOP_STRING
            return self._detokenizer.finish(ids, stopped, vocabulary)
        special = None
        if self._params.include_stop_str_in_output:
            special = self._stop_special(ids[-1], vocabulary)
            if special is None:
                return self._detokenizer.finish(ids, vocabulary=vocabulary)
        return self._detokenizer.finish(ids[:-1], vocabulary=vocabulary) + (special or "")

    def _end_step(self) -> None:
        """Makes a step of the parts told so far."""
        last = self._part[-1]
        ids = tuple(i for event in self._part for i in event.token_ids)
        reward, guessed = _finite(last.reward), last.guesses
        source, lost = SOURCES[last.source], self._lost
        self._steps.append(Step("", ids, source, reward, self._to_rewrite, guessed, lost))
        self._ends.append(self._detokenizer.num_decoded)
        self._to_rewrite, self._lost = None, ()
        self._part.clear()

    def _text_here(self, event: StepDecided | LostCandidate) -> str:
        """The text that its tokens would add, if they were kept."""
        vocabulary = self._writers[event.source].vocabulary
        return self._detokenizer.text_if_last(event.token_ids, vocabulary)

    def _candidate(self, lost: LostCandidate) -> Candidate:
        score = None if lost.score is None else _finite(lost.score)
        text, source = self._text_here(lost), SOURCES[lost.source]
        return Candidate(text, lost.token_ids, source, _or_nan(lost.reward), score)

    def _reject(self, event: StepDecided) -> StepEvent:
        text = self._text_here(event)
        self._to_rewrite = RejectedStep(text, event.token_ids, _or_nan(event.reward))
        self._rejected.append(self._to_rewrite)
        return self._event("rejected", text, event)

    def close(self, done: RequestDone) -> StepEvent | None:
        """Ends the sample; an abort or error may release text that was held back."""
        self.done = done
        self._failure = self._failure or done.failure
        if self._part:
            self._end_step()  # its request failed or was aborted, but what was told stays
        if self._steps and done.finish not in (None, Finish.ERROR) and self._dropped is None:
            return None
        rest = self._detokenizer.finish()
        if not rest:
            return None
        self._pieces.append(rest)
        last = self._steps[-1]
        return StepEvent(self.request_id, self.index, "kept", rest, (), last.source, None)

    def completion(self) -> CompletionOutput:
        """The output of the sample, once it is closed."""
        assert self.done is not None
        token_ids = tuple(i for step in self._steps for i in step.token_ids)
        text = "".join(self._pieces)
        logprobs = self._logprobs if self._params.logprobs is not None else None
        return CompletionOutput(
            index=self.index,
            text=text,
            token_ids=token_ids,
            finish_reason=self._finish_reason,
            stop_reason=self._stop_reason(),
            steps=self._steps_of(text),
            cumulative_logprob=None if logprobs is None else sum(p.logprob for p in logprobs),
            logprobs=None if logprobs is None else self._logprobs_of_steps(),
            error=self._error(),
        )

    def failed_completion(self) -> CompletionOutput:
        """The output where `completion` fails."""
        return CompletionOutput(self.index, "", (), "error", None, (), error=self._error())

    @property
    def _finish_reason(self) -> FinishReason:
        assert self.done is not None
        return "error" if self._failure else _REASONS[self.done.finish]

    def prompt_logprobs(
        self, token_ids: tuple[int, ...]
    ) -> tuple[dict[int, Logprob] | None, ...] | None:
        """Of each token of the prompt; None unless asked for, and for the first token."""
        read = self.prompt_read
        if read is None:
            return None
        vocabulary = self._writers[read.role].vocabulary
        return (None, *named_logprobs(token_ids[1:], read.logprobs, vocabulary))

    def metrics(self, parameters: Mapping[Role, int]) -> Metrics:
        """Counts of the sample, once it is closed; `parameters` of each model, for the FLOPs."""
        assert self.done is not None
        counts = SampleCounts(
            self._steps, self._rejected, self._lost, self._dropped, self.done,
            has_candidates=slots_of(self._params.step_candidates, self._params.select) > 1,
        )  # fmt: skip
        metrics = counts.metrics(parameters)
        return replace(metrics, endings=Endings(**{self._finish_reason: 1}), errors=self._errors())

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of the prompt that the target, or a draft alone, found in the prefix cache."""
        assert self.done is not None
        counters = self.done.counters
        found = counters.get(Role.TARGET) or counters.get(Role.DRAFT)
        return found.cached_tokens if found else 0

    def _steps_of(self, text: str) -> tuple[Step, ...]:
        """The steps with their texts, which add up to `text`: each character comes once.

        A character whose bytes two steps wrote belongs to the second one.
        """
        ends = [*self._ends[:-1], len(text)]
        return tuple(
            replace(step, text=text[start:end])
            for step, start, end in zip(self._steps, [0, *ends], ends, strict=False)
        )

    def _event(self, kind: StepKind, text: str, event: StepDecided) -> StepEvent:
        source, reward = SOURCES[event.source], _finite(event.reward)
        logprobs = None
        if self._params.logprobs is not None:
            vocabulary = self._writers[event.source].vocabulary
            logprobs = named_logprobs(event.token_ids, event.logprobs or (), vocabulary)
        lost = self._lost if event.kind == RecordKind.KEPT else ()
        return StepEvent(
            self.request_id, self.index, kind, text, event.token_ids, source, reward, logprobs, lost
        )

    def _stop_reason(self) -> int | str | None:
        assert self.done is not None
        finish = self.done.finish
        if finish == Finish.PRM_FULL or (finish == Finish.LENGTH and self._prm_limits):
            return PRM_CONTEXT
        if finish == Finish.STOP_TOKEN:
            tokens, last = self._tokens_of(self._steps[-1]), self._steps[-1].token_ids[-1]
            if last in tokens.eos_ids:
                return None
            return self._stop_special(last, tokens.vocabulary) or last
        if finish == Finish.STOP_STRING:
            data = (self._tokens_of(step).vocabulary.join(step.token_ids) for step in self._steps)
            text = b"".join(data).decode("utf-8", errors="replace")
            return cut_at_stop(text, self._params.stop_strings, after=self._before_last())[1]
        return None

    def _before_last(self) -> int:
        """Characters up to the last token; it may complete one, and with it the stop string."""
        detokenizer = Detokenizer(self._tokens_of(self._steps[-1]).vocabulary)
        for step in self._steps[:-1]:
            detokenizer.push(step.token_ids, self._tokens_of(step).vocabulary)
        detokenizer.push(self._steps[-1].token_ids[:-1])
        return detokenizer.num_decoded

    def _tokens_of(self, step: Step) -> WriterTokens:
        """The vocabulary in which it is written."""
        return self._writers[_ROLES[step.source]]

    def _stop_special(self, token: int, vocabulary: Vocabulary) -> str | None:
        """The stop string that is this special token."""
        text = vocabulary.special_text.get(token)
        return text if text in self._params.stop_strings else None

    def _errors(self) -> Errors:
        if self._finish_reason != "error":
            return Errors()
        return Errors(**{self._failure.kind if self._failure else "logits": 1})

    def _error(self) -> str | None:
        assert self.done is not None
        if self._failure:
            return self._failure.message
        if self.done.finish != Finish.ERROR:
            return None
        role = self._dropped.source.name.lower() if self._dropped else "a"
        error = f"the {role} model gave logits that are not finite (NaN or infinite)"
        if 0 < self._params.temperature < 1:
            error += f", or are not when divided by temperature={self._params.temperature}"
        if self._params.allowed_token_ids or self._params.bad_words:
            error += ", or allowed_token_ids, bad_words and min_tokens left no token to sample"
        return error

    def _logprobs_of_steps(self) -> tuple[dict[int, Logprob], ...]:
        """Of every token, by the names of the model that wrote it."""
        named, entries = list[dict[int, Logprob]](), iter(self._logprobs)
        for step in self._steps:
            own = list(islice(entries, len(step.token_ids)))
            named += named_logprobs(step.token_ids, own, self._tokens_of(step).vocabulary)
        return tuple(named)


def _finite(number: float) -> float | None:
    """A reward or a score; None if there is none, which the core has as NaN or -inf."""
    return number if math.isfinite(number) else None


def _or_nan(reward: float) -> float:
    return reward if math.isfinite(reward) else math.nan
