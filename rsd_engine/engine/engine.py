"""The public engine: prompts in, results or steps out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch

from rsd_engine.engine.build import EngineParts, build_engine
from rsd_engine.engine.chat.conversation import ChatOptions, Message, Tool
from rsd_engine.engine.dispatcher import Dispatcher
from rsd_engine.engine.home_process import HomeProcess, refuse_to_copy
from rsd_engine.engine.memory_report import MemoryReport
from rsd_engine.engine.model_sources import ModelSource, OpenOptions
from rsd_engine.engine.progress import Progress, collect
from rsd_engine.engine.prompts import Prompt, PromptReader, ResolvedPrompt
from rsd_engine.engine.requests.checker import RequestChecker
from rsd_engine.engine.requests.params import changed_fields, default_params
from rsd_engine.engine.rewards.prm_options import PrmFormatLike
from rsd_engine.engine.rewards.step_scoring import StepScoring
from rsd_engine.engine.stream import Stream
from rsd_engine.loop.executors.timed_recorder import OpTime, TimedRecorder
from rsd_engine.outputs import Metrics, RequestOutput
from rsd_engine.sampling_params import SamplingParams
from rsd_engine.steps.policies import Policy
from rsd_engine.steps.scorers import Scorer
from rsd_kernels.state.enums import Role

logger = logging.getLogger("rsd_engine")

_Params = SamplingParams | Sequence[SamplingParams] | None  # for all, for each, the defaults


class Engine(StepScoring):
    """Reward-Guided Speculative Decoding (RSD) with three models in one process, on one device.

    >>> engine = Engine("models/draft", "models/target", "models/prm", policy=Threshold(0.7))
    >>> params = SamplingParams(temperature=0.0, max_tokens=512)
    >>> [result] = engine.chat([{"role": "user", "content": "What is 2 + 3?"}], params)
    >>> print(result.outputs[0].text, result.metrics.acceptance_rate)

    Close it after use, or use it in a `with` statement. Several threads may use one engine; a
    forked process may not.

    Args:
        draft: the small model: folder, hub id, GGUF file or open checkpoint.
        target: the big model, likewise; or, beside a draft, one on a server, as a URL or a
            `RemoteModel`. Draft or target given alone writes alone, without RSD; so do both without
            a PRM, if the draft may guess for the target (`max_guesses`). If both have different
            tokenizers, steps go from one to the other through text.
        prm: the process reward model, of a family in `rsd_engine.models.reward`, or on a server.
        policy: from the reward of a step to the chance to keep it; by default the threshold of the
            PRM's family. A request may bring its own.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1" and so on.
        dtype: of weights and computation: "auto" (the checkpoint's on a GPU, float32 on a CPU),
            "float32", "bfloat16", "float16" or a `torch.dtype`.
        max_num_seqs: most requests that run at once (slots).
        max_model_len: most tokens of prompt and output; by default what draft and target allow, or
            as many as the pages hold, if these are fewer.
        kv_cache_memory_bytes: memory for K and V of all models; by default on a GPU what the models
            leave of `gpu_memory_utilization`, on a CPU a quarter of the free memory they leave.
        gpu_memory_utilization: share of the GPU's memory that the engine may use, in (0, 1].
        step_delimiters: string or strings that end a step; None for no steps. "auto" is a blank
            line where a PRM scores steps, and None for a model alone. A token that runs past a
            delimiter is cut there, which changes what the model reads next.
        step_ends: what draft and target read at the end of a kept step: "text", the tokens of its
            text, as in the RSD authors' code, or "tokens", those that were written. Outputs have
            the latter either way, with their logprobs; a model alone reads its own tokens.
        revision: branch, tag or commit of hub ids.
        hf_overrides: for each role ("draft", "target", "prm") fields of its config.json to
            replace, such as {"target": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}}.
        quantization: "int8", "int4" or, on a GPU, "fp8", for all models or by role as in
            {"target": "int4"}: rounds plain weights in blocks as they are loaded.
        executor: how the loop runs. "auto" takes the fastest of "device-loop" (GPU: one graph runs
            many ticks), "host-graphs" (GPU: the host replays graphs every tick) and "eager"
            (Python). For tests, "simulated-loop" walks the graph of the device loop in Python; for
            profiling, "profile" times every op (see `op_times`).
        prm_format: how the PRM is fed and read: the name of a family, or a format of one's own, a
            `PrmTemplate`; by default what its checkpoint tells.
        prm_separator: what follows every step in the PRM's context; by default the family's. Those
            that split solutions by newlines (Skywork) follow `step_delimiters`, the first of them.
        max_guesses: tokens that one pass of the target may verify, over all slots, for requests
            that `speculate`; each takes a row of logits. 0 is for none.
        enable_prefix_caching: whether a model reads no token again that it has read in the same
            context for an earlier request, as long as no other needs the pages.
        scorer: what scores the steps in place of a PRM, without a model of its own: `TargetJudge`,
            `Confidence` or `Probe`. Its default threshold is then that of the policy.

    Raises:
        ValueError: an argument or a checkpoint is not usable, or they do not go together; nothing
            was started.
        MemoryError: the models, or contexts of a useful length, do not fit into the memory.
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
        step_delimiters: str | Sequence[str] | None = "auto",
        step_ends: str = "text",
        revision: str | None = None,
        hf_overrides: Mapping[str, Mapping[str, Any]] | None = None,
        quantization: str | Mapping[str, str] | None = None,
        executor: str = "auto",
        max_guesses: int = 0,
        enable_prefix_caching: bool = True,
        prm_format: PrmFormatLike | None = None,
        prm_separator: str | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        self._home = HomeProcess()
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
            step_ends=step_ends,
            opening=OpenOptions(revision, hf_overrides, quantization),
            executor=executor,
            max_guesses=max_guesses,
            enable_prefix_caching=enable_prefix_caching,
            prm_format=prm_format,
            prm_separator=prm_separator,
            scorer=scorer,
        )  # fmt: skip
        self._dispatcher = Dispatcher(self._parts, self._home)
        models = self._parts.models
        draft_tokenizer = models.writers[Role.DRAFT].tokenizer if models.separate else None
        self._reader = PromptReader(models.main.tokenizer, draft_tokenizer)
        self._closed = False
        self._default_params = default_params(models.main.generation_config)
        self._checker = RequestChecker(self._parts, self._default_params)
        if changed := changed_fields(self._default_params):
            logger.info("sampling defaults of the checkpoint: %s", changed)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: Progress = True,
    ) -> list[RequestOutput]:
        """Completes prompts as they are, without a chat template.

        Args:
            prompts: one prompt or a list of prompts. A prompt is text, a list of token ids, or a
                dict with "prompt" (text) or "prompt_token_ids", and maybe "question": what the PRM
                reads in place of the prompt's text.
            sampling_params: one for all prompts or one for each; None takes the defaults of the
                checkpoint (`get_default_sampling_params`).
            use_tqdm: whether to show a progress bar, or a function to make one in place of `tqdm`.

        Returns:
            One result per prompt, in the same order.

        Raises:
            ValueError: a prompt or its parameters are not allowed; no request was started.
        """
        return self._run(self._prompt_reader().prompts(prompts), sampling_params, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: Progress = True,
        question: str | Sequence[str | None] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
    ) -> list[RequestOutput]:
        """Answers conversations, by way of a chat template, as transformers and vLLM do.

        Args:
            messages: one conversation or a list of them; each is a list of messages such as
                {"role": "user", "content": "Hi"}. Content is text, a list of parts such as
                {"type": "text", "text": "Hi"}, or None in a message of the assistant. A template
                that cannot read parts gets their texts, joined by line breaks.
            sampling_params: as in `generate`.
            use_tqdm: as in `generate`.
            question: what the PRM reads as the problem, one for all conversations or one for each;
                None takes the last user message, or without one the last message with text.
            chat_template: a Jinja template, or the name of one of the tokenizer's; None takes the
                tokenizer's own. It runs in a process of its own, for at most 2 seconds.
            chat_template_kwargs: more variables for it, such as {"enable_thinking": False}.
            tools: functions that the model may call: JSON schemas, or Python functions with type
                hints and a docstring.
            add_generation_prompt: whether to end with the beginning of the assistant's message;
                None does so unless `continue_final_message`.
            continue_final_message: whether the model continues the last message in place of
                beginning a new one. The result has the continuation only.

        Returns:
            One result per conversation, in the same order.

        Raises:
            ValueError: as in `generate`; or there is no chat template, or it fails.
        """
        options = ChatOptions(
            chat_template, chat_template_kwargs, tools,
            add_generation_prompt, continue_final_message,
        )  # fmt: skip
        resolved = self._prompt_reader().conversations(messages, question, options)
        return self._run(resolved, sampling_params, use_tqdm)

    def as_completed(
        self,
        prompts: Prompt | Sequence[Prompt | Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Iterator[tuple[int, RequestOutput]]:
        """Yields (index of the prompt, result) as requests finish; leaving it aborts the rest.

        Args:
            prompts: as in `generate`; a list of messages in place of a prompt is a conversation,
                and so is a dict with "messages" and maybe "question" and other options of `chat`.
            sampling_params: as in `generate`.

        Raises:
            ValueError: as in `generate`, before it returns.
        """
        return self._completed(self._prompt_reader().mixed(prompts), sampling_params)

    def stream(
        self, prompt: Prompt | Sequence[Message], sampling_params: SamplingParams | None = None
    ) -> Stream:
        """Starts one request and streams its steps as they are decided.

        >>> for event in engine.stream("2 + 3 ="):  # or: async for
        ...     if isinstance(event, StepEvent) and event.kind == "kept":
        ...         print(event.text, end="")

        Kept steps are final, and their texts add up to the result's text. Rejected steps are events
        too. A model alone streams its tokens, as kept events. The last event is a `FinishedEvent`
        with the result. Leaving the loop early aborts the request. The call itself waits until the
        running tick has ended; beside an event loop use `await asyncio.to_thread(engine.stream,
        ...)`.

        Args:
            prompt: a prompt or a conversation, as in `as_completed`.
            sampling_params: None takes the defaults of the checkpoint.

        Raises:
            ValueError: the prompt or its parameters are not allowed.
        """
        return self.streams([prompt], sampling_params)[0]

    def streams(
        self,
        prompts: Sequence[Prompt | Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        by_token: bool = True,
    ) -> list[Stream]:
        """Starts several requests, all or none; `by_token=False`: a model alone streams steps."""
        resolved = self._prompt_reader().mixed(prompts)
        requests = self._checker.check_all(resolved, sampling_params, stream=by_token)
        dispatcher = self._alive()
        return [
            Stream(dispatcher, claim, request.prompt.token_ids)
            for claim, request in zip(dispatcher.add_all(requests), requests, strict=True)
        ]

    def abort(self, request_id: str) -> None:
        """Ends a request at once; its result has the kept steps, with finish_reason "abort".

        Does nothing if the request has finished or is unknown.
        """
        self._alive().abort(request_id)

    # ------------------------------------------------------------------ facts and the end

    @property
    def parts(self) -> EngineParts:
        """Models, page pool and core, for tests, benchmarks and profilers; use between launches.

        They may change from one release to the next.
        """
        self._alive()
        return self._parts

    @property
    def metrics(self) -> Metrics:
        """Sums over all finished requests, but `seconds` is the time spent in launches."""
        return self._alive().metrics

    @property
    def num_preemptions(self) -> int:
        """How often a request lost its pages to an older one, and had to read its context again."""
        self._alive()
        return self._parts.core.num_preemptions

    @property
    def memory(self) -> MemoryReport:
        """Bytes of weights, pages, activations and state, and how full the held pages are.

        While requests run, read it between two events of a stream, not from another thread.
        """
        self._alive()
        return self._parts.memory()

    def check_integrity(self) -> list[str]:
        """What is wrong with pages, lengths and phases of the slots, a line each; nothing if empty.

        It may be called from any thread, and waits for the end of the running tick. It reads the
        whole page table, so call it when in doubt, not all the time.
        """
        return self._alive().check_integrity()

    def reset_prefix_cache(self) -> None:
        """What was read until now is read again by requests to come; from any thread."""
        self._alive().reset_prefix_cache()

    @property
    def op_times(self) -> dict[str, OpTime]:
        """Calls and seconds of every op so far, by "ROLE.op"; needs executor="profile"."""
        return self._timed_recorder().times()

    def reset_op_times(self) -> None:
        """Discards the op times so far, such as those of a warm-up."""
        self._timed_recorder().reset()

    def get_tokenizer(self) -> Any:
        """The transformers tokenizer that draft and target share, or the target's."""
        self._alive()
        return self._parts.models.main.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """The sampling defaults of the checkpoint, for requests without parameters."""
        return self._default_params

    def close(self) -> None:
        """Aborts all requests and frees weights and pages. The engine cannot be used again."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._home.is_here:
                self._dispatcher.close()
                self._reader.close()
        finally:
            del self._parts, self._dispatcher, self._reader, self._checker

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        refuse_to_copy("an Engine")

    # ------------------------------------------------------------------ requests

    def _timed_recorder(self) -> TimedRecorder:
        self._alive()
        recorder = getattr(self._parts.core.executor, "recorder", None)
        if not isinstance(recorder, TimedRecorder):
            raise ValueError("op times need an engine with executor='profile'")
        return recorder

    def _alive(self) -> Dispatcher:
        """The dispatcher, if this engine can be used here."""
        if self._closed:
            raise ValueError("the engine is closed; make a new one")
        self._home.check()
        return self._dispatcher

    def _prompt_reader(self) -> PromptReader:
        self._alive()
        return self._reader

    def _run(
        self, prompts: Sequence[ResolvedPrompt], params: _Params, use_tqdm: Progress
    ) -> list[RequestOutput]:
        return collect(self._completed(prompts, params), len(prompts), use_tqdm)

    def _completed(
        self, prompts: Sequence[ResolvedPrompt], params: _Params
    ) -> Iterator[tuple[int, RequestOutput]]:
        """Not a generator itself, so that a request that is not allowed is refused at once."""
        dispatcher = self._alive()
        return dispatcher.outputs(dispatcher.add_all(self._checker.check_all(prompts, params)))
