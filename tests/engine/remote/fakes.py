"""Servers that speak as vLLM and SGLang do, around an engine: bodies as they document them.

Fields that these servers do not know are errors here, so that nothing is sent in vain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request

from rsd_engine import CompletionOutput, Engine, SamplingParams
from rsd_engine.core.solution_rewards import Solution

NAME = "org/big"
_COMPLETION = {
    "model", "prompt", "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p",
    "repetition_penalty", "seed", "stop", "stop_token_ids", "ignore_eos", "logit_bias",
    "allowed_token_ids", "include_stop_str_in_output", "return_token_ids", "add_special_tokens",
    "skip_special_tokens",
}  # fmt: skip
_SAMPLING = {
    "max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k", "min_p",
    "repetition_penalty", "sampling_seed", "stop", "stop_token_ids", "ignore_eos", "logit_bias",
    "no_stop_trim", "skip_special_tokens",
}  # fmt: skip
_POOLING = {"model", "input", "task", "use_activation", "encoding_format", "add_special_tokens"}
_CLASSIFY = {"model", "input", "use_activation", "add_special_tokens"}


class Behind:
    """The engine behind a fake.

    Args:
        engine: writes as its target does, and scores as its PRM does.
        most_ids: of one answer: the server's own limit.
    """

    def __init__(self, engine: Engine, most_ids: int = 1 << 20) -> None:
        self.engine = engine
        self.most_ids = most_ids
        self.bodies: list[dict[str, Any]] = []

    def write(self, ids: Sequence[int], max_tokens: int, **params: Any) -> CompletionOutput:
        most = min(max_tokens, self.most_ids)
        params["min_tokens"] = min(params["min_tokens"], most)
        params["logit_bias"] = {int(i): b for i, b in params.get("logit_bias", {}).items()}
        asked = SamplingParams(max_tokens=most, mode="target", **params)
        [result] = self.engine.generate({"prompt_token_ids": list(ids)}, asked, use_tqdm=False)
        return result.outputs[0]

    def reward(self, ids: Sequence[int]) -> float:
        """Of a context that ends with a step."""
        prm = self.engine.parts.models.prm
        assert prm is not None
        work = self.engine._work(prm, [Solution((tuple(ids),))])
        self.engine._alive().read_solutions(work)
        return work.rewards[0][0]


async def _body(request: Request, allowed: set[str]) -> dict[str, Any]:
    body: dict[str, Any] = await request.json()
    if set(body) - allowed:
        raise HTTPException(400, f"unknown: {sorted(set(body) - allowed)}")
    return body


def _models(owner: str) -> dict[str, Any]:
    one = {"id": NAME, "object": "model", "owned_by": owner, "root": NAME, "max_model_len": 400}
    return {"object": "list", "data": [one]}


def vllm_app(behind: Behind, pooling: Callable[[float], Any] | None = None) -> FastAPI:
    """vLLM; `pooling` makes a row of /pooling of a reward, in place of /classify."""
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> Any:
        return _models("vllm")

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Any:
        body = await _body(request, {"model", "prompt", "add_special_tokens"})
        ids = behind.engine.get_tokenizer().encode(body["prompt"], add_special_tokens=False)
        return {"tokens": ids, "count": len(ids), "max_model_len": 400}

    @app.post("/v1/completions")
    async def completions(request: Request) -> Any:
        body = await _body(request, _COMPLETION)
        behind.bodies.append(body)
        assert body["return_token_ids"] and body["include_stop_str_in_output"]
        names = _COMPLETION & {*SamplingParams.__dataclass_fields__} - {"max_tokens"}
        params = {name: body[name] for name in names if name in body}
        out = await asyncio.to_thread(behind.write, body["prompt"], body["max_tokens"], **params)
        choice = {
            "index": 0, "text": out.text, "token_ids": list(out.token_ids), "logprobs": None,
            "finish_reason": out.finish_reason, "stop_reason": out.stop_reason,
        }  # fmt: skip
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(out.token_ids)}
        return {"object": "text_completion", "model": NAME, "choices": [choice], "usage": usage}

    @app.post("/pooling")
    async def pool(request: Request) -> Any:
        body = await _body(request, _POOLING)
        if pooling is None:
            error = {"message": "Unsupported task: token_classify", "code": 400}
            raise HTTPException(400, error)
        assert body["task"] == "token_classify" and body["use_activation"]
        reward = await asyncio.to_thread(behind.reward, body["input"])
        rows = [pooling(0.123), pooling(reward)]  # of an earlier step, and of the last
        return {"data": [{"index": 0, "object": "pooling", "data": rows}], "model": NAME}

    @app.post("/classify")
    async def classify(request: Request) -> Any:
        body = await _body(request, _CLASSIFY)
        if pooling is not None:
            raise HTTPException(400, {"message": "Unsupported task: classify", "code": 400})
        reward = await asyncio.to_thread(behind.reward, body["input"])
        return {"data": [{"index": 0, "label": "LABEL_1", "probs": [1 - reward, reward]}]}

    return app


def sglang_app(behind: Behind, embedding: Callable[[float], list[float]] | None = None) -> FastAPI:
    """SGLang; `embedding` makes the raw scores of a reward."""
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> Any:
        return _models("sglang")

    @app.post("/generate")
    async def generate(request: Request) -> Any:
        body = await _body(request, {"input_ids", "sampling_params"})
        behind.bodies.append(body)
        asked = dict(body["sampling_params"])
        if set(asked) - _SAMPLING or asked["top_k"] == 0 or not asked["no_stop_trim"]:
            raise HTTPException(400, f"not allowed: {asked}")
        params = {
            name: asked[name]
            for name in _SAMPLING & {*SamplingParams.__dataclass_fields__} - {"top_k"}
            if name in asked
        }
        out = await asyncio.to_thread(
            behind.write, body["input_ids"], asked["max_new_tokens"],
            min_tokens=asked["min_new_tokens"], include_stop_str_in_output=True, **params,
        )  # fmt: skip
        ended = out.finish_reason == "stop"
        last = out.token_ids[-1]
        finish: dict[str, Any] = {"type": "length", "length": len(out.token_ids)}
        if ended:
            matched = out.stop_reason if isinstance(out.stop_reason, str) else last
            finish = {"type": "stop", "matched": matched}
        meta = {
            "id": "1", "finish_reason": finish, "prompt_tokens": len(body["input_ids"]),
            "completion_tokens": len(out.token_ids), "cached_tokens": len(body["input_ids"]) - 1,
        }  # fmt: skip
        return {"text": out.text, "output_ids": list(out.token_ids), "meta_info": meta}

    @app.post("/classify")
    async def classify(request: Request) -> Any:
        body = await _body(request, {"input_ids"})
        assert embedding is not None
        reward = await asyncio.to_thread(behind.reward, body["input_ids"])
        return {"embedding": embedding(reward), "meta_info": {"prompt_tokens": 1}}

    return app
