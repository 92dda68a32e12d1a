"""The public face: prompts in, results or steps out."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
from tqdm.auto import tqdm

from rsd_engine.engine.build import EngineParts, build_engine
from rsd_engine.engine.dispatcher import CheckedRequest, Dispatcher
from rsd_engine.engine.memory_report import MemoryReport
from rsd_engine.engine.models import ModelSource
from rsd_engine.engine.prompts import (
    Message,
    Prompt,
    ResolvedPrompt,
    is_single_prompt,
    resolve_any,
    resolve_chats,
    resolve_prompts,
)
from rsd_engine.engine.requests import (
    changed_fields,
    default_params,
    params_of_each,
    slot_request,
)
from rsd_engine.engine.stream import Stream
from rsd_engine.loop.executors.timed_recorder import OpTime, TimedRecorder
from rsd_engine.outputs import FinishedEvent, Metrics, RequestOutput
from rsd_engine.sampling_params import MAX_SEED, SamplingParams
from rsd_engine.steps.policies import Policy

logger = logging.getLogger("rsd_engine")

Progress = bool | Callable[..., Any]


class Engine:
    """Reward-Guided Speculative Decoding of three models in one process, on one device.

    Args:
        draft: the small model: folder, hub id, GGUF file or open checkpoint.
        target: the big model. Draft or target may be given alone: then that model writes alone.
        prm: the process reward model, of a family in `rsd_engine.models.reward`.
        policy: from the reward of a step to the chance to keep it; by default the threshold of the
            PRM's family. A request may bring its own.
        device: "auto" (a GPU if there is one), "cpu", "cuda", ...
        dtype: "auto" (the checkpoint's on a GPU, float32 on a CPU), "float32", "bfloat16", ...
        max_num_seqs: requests that run at once (slots).
        max_model_len: most tokens of prompt and output; by default what draft and target allow.
        kv_cache_memory_bytes: memory of the page pool; by default what is free on a GPU, within
            `gpu_memory_utilization`, or a quarter of the free memory of a CPU.
        gpu_memory_utilization: share of the GPU's memory that weights and pages may take.
        step_delimiters: a string or strings that end a step; None for plain decoding.
        revision: branch, tag or commit of hub ids.
        executor: how the loop runs: "auto", "eager", "host-graphs", "device-loop" (GPUs), or
            "simulated-loop" (the device loop's graph walked by Python, on any device) or
            "profile" (every op a graph of its own, timed: see `op_times`).

    Raises:
        ValueError: an argument, a checkpoint or their combination is bad; nothing was started.
    """

    def __init__(
        self,
        draft: ModelSource | None = None,
        target: ModelSource | None = None,
        prm: ModelSource | None = None,
        *,
        policy: Policy | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        max_num_seqs: int = 16,
        max_model_len: int | None = None,
        kv_cache_memory_bytes: int | None = None,
        gpu_memory_utilization: float = 0.9,
        step_delimiters: str | Sequence[str] | None = "\n\n",
        revision: str | None = None,
        executor: str = "auto",
    ) -> None:
        self._parts: EngineParts = build_engine(
            draft, target, prm,
            policy=policy,
            device=device,
            dtype=dtype,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            kv_cache_memory_bytes=kv_cache_memory_bytes,
            gpu_memory_utilization=gpu_memory_utilization,
            step_delimiters=step_delimiters,
            revision=revision,
            executor=executor,
        )  # fmt: skip
        self._dispatcher = Dispatcher(self._parts)
        self._closed = False
        self._pid = os.getpid()
        self._default_params = default_params(self._parts.models.main.generation_config)
        if self._default_params != SamplingParams():
            changed = changed_fields(self._default_params)
            logger.info("sampling defaults of the checkpoint: %s", changed)

    # ------------------------------------------------------------------ generate

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: Progress = True,
    ) -> list[RequestOutput]:
        """Completes raw prompts: text, token ids, or dicts of either with the bare `question`.

        Args:
            prompts: one prompt or several.
            sampling_params: one for all or one per prompt; None takes the checkpoint's defaults.
            use_tqdm: show a progress bar; or a callable that makes one.

        Returns:
            One result a prompt, in the order of the prompts.

        Raises:
            ValueError: any prompt or parameter is bad; nothing was started.
        """
        return self._run(resolve_prompts(prompts, self.get_tokenizer()), sampling_params, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: Progress = True,
    ) -> list[RequestOutput]:
        """Answers conversations through the chat template; otherwise as `generate`."""
        return self._run(resolve_chats(messages, self.get_tokenizer()), sampling_params, use_tqdm)

    def as_completed(
        self,
        prompts: Prompt | Sequence[Prompt] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Iterator[tuple[int, RequestOutput]]:
        """Yields (index of the prompt, result) as requests finish; leaving it aborts the rest.

        A list of messages in place of a prompt is a conversation.
        """
        tokenizer = self.get_tokenizer()
        listed = [prompts] if is_single_prompt(prompts) else prompts
        resolved = [resolve_any(prompt, tokenizer) for prompt in listed]  # type: ignore[arg-type]
        return self._completed(resolved, sampling_params)

    def stream(
        self, prompt: Prompt | Sequence[Message], sampling_params: SamplingParams | None = None
    ) -> Stream:
        """One request, a decided step at a time: `for event in ...` or `async for event in ...`.

        Kept steps are final and their texts add up to the result's text; rejected steps are events
        of their own; the last event carries the result. Leaving the stream aborts the request.
        The call waits for the tick that runs: `await asyncio.to_thread(engine.stream, ...)` does so
        beside an event loop.
        """
        resolved = resolve_any(prompt, self.get_tokenizer())
        [request_id] = self._add_all([resolved], sampling_params)
        return Stream(self._alive(), request_id)

    def abort(self, request_id: str) -> None:
        """Ends a request at once; its result has what was kept, with finish_reason `abort`."""
        self._alive().abort(request_id)

    # ------------------------------------------------------------------ the rest of the face

    @property
    def parts(self) -> EngineParts:
        """Models, page pool and core: for tests, benchmarks and profilers, between launches.

        What it leads to is documented, and may change from one release to the next.
        """
        self._alive()
        return self._parts

    @property
    def metrics(self) -> Metrics:
        """Sums over all finished requests; `seconds` is the time spent in launches."""
        return self._alive().metrics

    @property
    def num_preemptions(self) -> int:
        self._alive()
        return self._parts.core.num_preemptions

    @property
    def memory(self) -> MemoryReport:
        """Bytes of weights, pages, activations and state, and how full the held pages are.

        While requests run, ask between two events of a stream, not from another thread.
        """
        self._alive()
        return self._parts.memory()

    @property
    def op_times(self) -> dict[str, OpTime]:
        """Calls and seconds of every op so far, by "ROLE.op"; needs executor="profile"."""
        return self._timed_recorder().times()

    def reset_op_times(self) -> None:
        """Forgets the times so far, such as those of a warm-up."""
        self._timed_recorder().reset()

    def get_tokenizer(self) -> Any:
        """The tokenizer of draft and target, as transformers gives it."""
        self._alive()
        return self._parts.models.main.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What a request without parameters gets: the checkpoint's sampling defaults."""
        return self._default_params

    def close(self) -> None:
        """Aborts what runs and lets go of weights and pages. The engine cannot be used again."""
        if self._closed:
            return
        self._closed = True
        try:
            if os.getpid() == self._pid:
                self._dispatcher.close()
        finally:
            del self._parts, self._dispatcher

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ requests

    def _timed_recorder(self) -> TimedRecorder:
        self._alive()
        recorder = getattr(self._parts.core.executor, "recorder", None)
        if not isinstance(recorder, TimedRecorder):
            raise ValueError("ops are timed by an engine with executor='profile'")
        return recorder

    def _alive(self) -> Dispatcher:
        if self._closed:
            raise ValueError("the engine is closed")
        if os.getpid() != self._pid:  # a fork has neither the worker thread nor the GPU
            raise RuntimeError(
                f"this engine belongs to process {self._pid}; make one in each process"
            )
        return self._dispatcher

    def _add_all(
        self,
        prompts: Sequence[ResolvedPrompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[str]:
        """Checks every request, then queues them all: a bad one leaves nothing started."""
        dispatcher = self._alive()
        checked = []
        each = params_of_each(params, len(prompts), self._default_params)
        for position, (prompt, p) in enumerate(zip(prompts, each, strict=True)):
            try:
                checked.append(self._check(prompt, p))
            except ValueError as error:
                where = f"prompt {position}: " if len(prompts) > 1 else ""
                raise ValueError(f"{where}{error}") from error
        return dispatcher.add_all(checked)

    def _check(self, prompt: ResolvedPrompt, params: SamplingParams) -> CheckedRequest:
        seed = secrets.randbelow(MAX_SEED) if params.seed is None else params.seed
        slots = [
            slot_request(prompt, params, self._parts.rules, seed=seed, sample=i)
            for i in range(params.n)
        ]
        problem = self._parts.core.check(slots[0])
        if problem:
            raise ValueError(
                f"max_tokens={params.max_tokens}: {problem}; "
                "lower max_tokens or raise kv_cache_memory_bytes"
            )
        return CheckedRequest(prompt, params, seed, slots)

    # ------------------------------------------------------------------ running

    def _run(
        self,
        prompts: Sequence[ResolvedPrompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: Progress,
    ) -> list[RequestOutput]:
        results: list[RequestOutput | None] = [None] * len(prompts)
        make_bar = use_tqdm if callable(use_tqdm) else tqdm
        bar = make_bar(total=len(prompts), desc="Prompts", disable=not use_tqdm)
        try:
            for index, result in self._completed(prompts, params):
                results[index] = result
                bar.update(1)
        finally:
            bar.close()
        return [result for result in results if result is not None]

    def _completed(
        self,
        prompts: Sequence[ResolvedPrompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> Iterator[tuple[int, RequestOutput]]:
        ids = self._add_all(prompts, params)
        return self._iterate(self._alive(), ids)

    @staticmethod
    def _iterate(dispatcher: Dispatcher, ids: list[str]) -> Iterator[tuple[int, RequestOutput]]:
        waiting = {request_id: index for index, request_id in enumerate(ids)}
        try:
            while waiting:
                for request_id in list(waiting):
                    for event in dispatcher.take(request_id):
                        if isinstance(event, FinishedEvent):
                            yield waiting.pop(request_id), event.output
                if waiting:
                    dispatcher.pump(next(iter(waiting)))
        finally:
            for request_id in waiting:
                dispatcher.drop(request_id)
