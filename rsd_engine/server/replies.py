"""Parts that the answers of both kinds of completion share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rsd_engine.outputs import (
    Candidate,
    CompletionOutput,
    Logprob,
    RequestOutput,
    Step,
    StepEvent,
)
from rsd_engine.server.predictions import Predictions
from rsd_engine.server.protocol.requests import FinishReason, SamplingFields

Json = dict[str, Any]
_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "steps": "length"}


def finish_reason(output: CompletionOutput) -> FinishReason:
    """OpenAI's word; `rsd.finish_reason` has the engine's, which knows "steps" too."""
    return _FINISH.get(output.finish_reason, "abort")


def usage(results: Sequence[RequestOutput]) -> Json:
    """Tokens of prompts and outputs.

    What OpenAI calls predicted is proposed here, see `Predictions`. `completion_tokens` has kept
    tokens alone: rejected predictions are beside it, not in it.
    """
    prompt = sum(len(result.prompt_token_ids) for result in results)
    completion = sum(len(o.token_ids) for result in results for o in result.outputs)
    found = Predictions.of(result.metrics for result in results)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": sum(result.num_cached_tokens for result in results)
        },
        "completion_tokens_details": {
            "accepted_prediction_tokens": found.accepted,
            "rejected_prediction_tokens": found.proposed - found.accepted,
        },
    }


def prompt_alone(result: RequestOutput) -> RequestOutput:
    """The result without what was written."""
    outputs = tuple(
        replace(
            output,
            text="",
            token_ids=(),
            steps=(),
            logprobs=None if output.logprobs is None else (),
            finish_reason="length",
            stop_reason=None,
        )
        for output in result.outputs
    )
    return replace(result, outputs=outputs)


def speculative_metrics(results: Sequence[RequestOutput]) -> Json | None:
    """vLLM's numbers of speculation, of the requests together; None without speculation."""
    found = Predictions.of(result.metrics for result in results)
    if not found.rounds:
        return None
    return {
        "speculative_decoding": {
            "num_spec_steps": found.rounds,
            "num_draft_tokens": found.proposed,
            "num_accepted_draft_tokens": found.accepted,
            "draft_acceptance_rate": found.accepted / found.proposed if found.proposed else 0.0,
            "mean_acceptance_length": found.accepted / found.rounds,
        }
    }


class StreamTokens:
    """What a stream tells of tokens beside their text, if it is asked to: ids, and usage so far.

    Args:
        body: of the request.
        prompts: ids of each prompt.
    """

    def __init__(self, body: SamplingFields, prompts: Sequence[Sequence[int]]) -> None:
        options = body.stream_options
        self._shows_ids = bool(body.return_token_ids)
        self._shows_usage = options is not None and options.continuous_usage_stats
        self._prompts = prompts
        self._samples = body.n or 1
        self._written = [0] * (len(prompts) * self._samples)

    def of_prompt(self, index: int) -> Json:
        """The ids that this sample goes on from."""
        if not self._shows_ids:
            return {}
        return {"prompt_token_ids": list(self._prompts[index // self._samples])}

    def of_choice(self, index: int, token_ids: Sequence[int]) -> Json:
        """The ids of a chunk's text, which count from now on."""
        self._written[index] += len(token_ids)
        return {"token_ids": list(token_ids)} if self._shows_ids else {}

    def so_far(self, index: int) -> Json:
        """The usage of this sample alone."""
        if not self._shows_usage:
            return {}
        prompt, written = len(self._prompts[index // self._samples]), self._written[index]
        return {
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": written,
                "total_tokens": prompt + written,
            }
        }


def rsd_object(result: RequestOutput) -> Json:
    """What the engine knows beyond OpenAI's fields, each sample with its steps."""
    metrics = result.to_dict()["metrics"]
    return {
        "seed": result.seed,
        "metrics": metrics,
        "choices": [
            {
                "index": output.index,
                "finish_reason": output.finish_reason,
                "steps": [_step(step) for step in output.steps],
            }
            for output in result.outputs
        ],
    }


def step_event(event: StepEvent) -> Json:
    """A decided step of a stream, the rejected ones included."""
    return {
        "index": event.index,
        "kind": event.kind,
        "source": event.source,
        "reward": _number(event.reward),
        "text": event.text,
        "num_tokens": len(event.token_ids),
        "candidates": [_candidate(lost) for lost in event.candidates],
    }


def chat_logprobs(token_ids: Sequence[int], logprobs: Sequence[dict[int, Logprob]]) -> Json:
    """In the shape of chat completions."""
    content = []
    for token, top in zip(token_ids, logprobs, strict=True):
        best = sorted(top.values(), key=lambda found: found.rank)
        entry = _chat_logprob(top[token])
        content.append(entry | {"top_logprobs": [_chat_logprob(found) for found in best]})
    return {"content": content}


def completion_logprobs(
    token_ids: Sequence[int], logprobs: Sequence[dict[int, Logprob] | None], offset: int
) -> Json:
    """In the shape of the older completions.

    Args:
        token_ids: of prompt or output.
        logprobs: of each; None where there is none, as for the first token of a prompt.
        offset: of the first token, in characters.
    """
    shape: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token, top in zip(token_ids, logprobs, strict=True):
        text = "" if top is None else top[token].decoded_token
        shape["tokens"].append(text)
        shape["token_logprobs"].append(None if top is None else _finite(top[token].logprob))
        shape["top_logprobs"].append(None if top is None else _likeliest_texts(top))
        shape["text_offset"].append(offset)
        offset += len(text)
    return shape


def _likeliest_texts(top: dict[int, Logprob]) -> Json:
    """Text -> log-probability; of two tokens with one text, that of the likelier one."""
    found: Json = {}
    for token in sorted(top.values(), key=lambda token: token.rank):
        found.setdefault(token.decoded_token, _finite(token.logprob))
    return found


def _chat_logprob(found: Logprob) -> Json:
    return {
        "token": found.decoded_token,
        "logprob": _finite(found.logprob),
        "bytes": list(found.bytes),
    }


def _finite(value: float) -> float:
    """JSON has no infinity; OpenAI writes -9999 for what cannot be."""
    return max(value, -9999.0)


def _step(step: Step) -> Json:
    rejected = step.rejected
    return {
        "text": step.text,
        "source": step.source,
        "reward": _number(step.reward),
        "num_tokens": len(step.token_ids),
        "guessed": step.guessed,
        "rejected": rejected
        and {
            "text": rejected.text,
            "reward": _number(rejected.reward),
            "num_tokens": len(rejected.token_ids),
        },
        "candidates": [_candidate(lost) for lost in step.candidates],
    }


def _candidate(lost: Candidate) -> Json:
    return {
        "text": lost.text,
        "source": lost.source,
        "reward": _number(lost.reward),
        "score": lost.score,
        "num_tokens": len(lost.token_ids),
    }


def _number(reward: float | None) -> float | None:
    return None if reward is None or reward != reward else reward
