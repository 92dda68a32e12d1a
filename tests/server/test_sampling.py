"""Whatever the engine takes for a request can be sent."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from rsd_engine import SamplingParams, Softmax, Threshold
from rsd_engine.sampling_params import OWN_FIELDS
from rsd_engine.server.protocol.requests import ChatRequest, CompletionRequest, RsdOptions
from rsd_engine.server.sampling import chat_params, completion_params

RSD: dict[str, Any] = {
    "policy": "threshold:0.25", "mode": "target", "max_steps": 7, "max_step_tokens": 9,
    "prm_overflow": "accept", "speculate": "ngram", "num_guesses": 3,
    "step_candidates": 4, "select": "softmax:20",
}  # fmt: skip


def test_an_echo_that_only_the_target_reads_has_no_guesses() -> None:
    echo = {"prompt": "a", "echo": True, "logprobs": 0, "max_tokens": 0}
    default = SamplingParams(mode="rsd", speculate="rejected+draft", num_guesses=2)
    request = CompletionRequest.model_validate(echo)
    params = completion_params(request, default, 1, ("rsd", "target"))
    assert (params.mode, params.speculate, params.num_guesses) == ("target", None, None)


def test_every_field_has_a_place() -> None:
    names = {field.name for field in fields(SamplingParams)}
    assert names <= {*CompletionRequest.model_fields, *RsdOptions.model_fields}
    assert names <= {*ChatRequest.model_fields, *RsdOptions.model_fields}
    assert set(OWN_FIELDS) == names & set(RsdOptions.model_fields)


def test_fields_of_rsd_arrive() -> None:
    expected = {**RSD, "policy": Threshold(0.25), "select": Softmax(20.0)}
    chat = ChatRequest.model_validate({"messages": [], "rsd": RSD})
    completion = CompletionRequest.model_validate({"prompt": "a", "rsd": RSD})
    for params in (
        chat_params(chat, SamplingParams(), 1),
        completion_params(completion, SamplingParams(), 1, ("rsd", "target", "draft")),
    ):
        assert {name: getattr(params, name) for name in RSD} == expected
