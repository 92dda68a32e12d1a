"""Has a server's target write steps: token ids there and back, by one body a kind of server.

What the server is told of the step's end only saves it work: the ids that come back are read by the
engine's own rules.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from rsd_engine.core.remote_steps import RemoteError, StepToWrite, WrittenIds
from rsd_engine.engine.remote.server import RemoteServer
from rsd_engine.sampling_params import SamplingParams

_NOT_THERE = {
    "logprobs": lambda p: p.logprobs is not None,
    "prompt_logprobs": lambda p: p.prompt_logprobs is not None,
    "presence_penalty": lambda p: p.presence_penalty,
    "frequency_penalty": lambda p: p.frequency_penalty,
    "bad_words": lambda p: p.bad_words,
}
_NOT_IN_SGLANG = {"allowed_token_ids": lambda p: p.allowed_token_ids is not None}


@dataclass(frozen=True)
class RemoteWriter:
    """The target's side of one server.

    Attributes:
        server: that writes.
        eos_ids: that end a text; without them in a request it goes on.
        eos_id: the one that stands for an end without an id; None if there is none.
    """

    server: RemoteServer
    eos_ids: frozenset[int]
    eos_id: int | None

    def write(self, step: StepToWrite) -> Future[WrittenIds]:
        """Begins the call; see `RemoteRoles`."""
        post = self.server.client.post
        if self.server.kind == "sglang":
            return post("/generate", self._sglang_body(step), self._read_sglang)
        return post("/v1/completions", self._openai_body(step), self._read_openai)

    def check(self, params: SamplingParams) -> None:
        """Raises ValueError if a request wants what servers cannot do for one step."""
        refused = dict(_NOT_THERE)
        if self.server.kind == "sglang":
            refused |= _NOT_IN_SGLANG
        for name, is_given in refused.items():
            if is_given(params):
                raise ValueError(
                    f"{name} cannot be used where the target is on a server "
                    f"({self.server.client.model}); leave it out, or use mode 'draft'"
                )

    def _common(self, step: StepToWrite) -> dict[str, Any]:
        """What both bodies call the same."""
        request = step.request
        body: dict[str, Any] = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "min_p": request.min_p,
            "repetition_penalty": request.repetition_penalty,
            "stop": sorted({*request.delimiters.strings, *request.stops.strings}),
            "stop_token_ids": list(request.stop_tokens),
            "ignore_eos": bool(self.eos_ids) and not self.eos_ids & set(request.stop_tokens),
            "skip_special_tokens": False,
        }
        if request.biases and not request.only_biased:
            body["logit_bias"] = {str(token): bias for token, bias in request.biases}
        return body

    def _openai_body(self, step: StepToWrite) -> dict[str, Any]:
        request = step.request
        body = {
            "model": self.server.name,
            "prompt": list(step.context),
            "max_tokens": step.max_tokens,
            "min_tokens": step.min_tokens,
            "top_k": request.top_k,
            "seed": _seed(step),
            "include_stop_str_in_output": True,
            "return_token_ids": True,
            "add_special_tokens": False,
            **self._common(step),
        }
        if request.only_biased:
            body["allowed_token_ids"] = [token for token, _ in request.biases]
            biased = {str(token): bias for token, bias in request.biases if bias}
            body |= {"logit_bias": biased} if biased else {}
        if self.server.kind == "rsd":
            body["rsd"] = {"mode": "target"}
        return body

    def _sglang_body(self, step: StepToWrite) -> dict[str, Any]:
        return {
            "input_ids": list(step.context),
            "sampling_params": {
                "max_new_tokens": step.max_tokens,
                "min_new_tokens": step.min_tokens,
                "top_k": step.request.top_k or -1,
                "sampling_seed": _seed(step),
                "no_stop_trim": True,
                **self._common(step),
            },
        }

    def _read_openai(self, answer: Any) -> WrittenIds:
        try:
            [choice] = answer["choices"]
            ids, finish, reason = (
                choice["token_ids"],
                choice["finish_reason"],
                choice["stop_reason"],
            )
        except (KeyError, TypeError, ValueError):
            raise RemoteError(
                "it answered without token_ids, finish_reason or stop_reason; it needs a version "
                "with return_token_ids"
            ) from None
        usage = answer.get("usage") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        return self._written(ids, finish, reason, usage, cached)

    def _read_sglang(self, answer: Any) -> WrittenIds:
        try:
            ids, meta = answer["output_ids"], answer["meta_info"]
            finish, reason = meta["finish_reason"]["type"], meta["finish_reason"].get("matched")
        except (KeyError, TypeError):
            raise RemoteError("it answered without output_ids or meta_info.finish_reason") from None
        return self._written(ids, finish, reason, meta, meta.get("cached_tokens"))

    def _written(
        self, ids: Any, finish: Any, reason: Any, counts: Mapping[str, Any], cached: Any
    ) -> WrittenIds:
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            raise RemoteError("it answered with token ids that are no list of integers")
        if finish not in ("stop", "length"):
            raise RemoteError(f"it ended the step with finish_reason {finish!r}")
        ends_text = finish == "stop" and not isinstance(reason, str)
        ids = tuple(ids)
        if ends_text:
            ids = _with_end(ids, reason if isinstance(reason, int) else None, self.eos_id)
        read = int(counts.get("prompt_tokens") or 0) + len(ids) - 1 - int(cached or 0)
        return WrittenIds(ids, ends_text, max(read, 0))


def _with_end(ids: tuple[int, ...], matched: int | None, eos_id: int | None) -> tuple[int, ...]:
    """The ids with the one that ended the text, which a server may leave out."""
    if matched is not None:
        return ids if ids[-1:] == (matched,) else (*ids, matched)
    return ids if ids or eos_id is None else (eos_id,)


def _seed(step: StepToWrite) -> int:
    """Another one for each step and sample, always the same; 31 bits, which every server takes."""
    request = step.request
    parts = (request.seed, request.sample_index, step.num_steps, len(step.context))
    digest = hashlib.blake2b(struct.pack("<4q", *parts), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1
