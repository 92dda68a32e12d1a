"""The model: outputs by RSD, log-likelihoods by the target, every request of a task at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import (
    get_rolling_token_windows,
    make_disjoint_window,
    simple_parse_args_string,
)
from tqdm import tqdm

from rsd_engine import Engine, Metrics, RequestOutput, SamplingParams
from rsd_engine.integrations.lm_eval.arguments import (
    ModelArgumentError,
    read_arguments,
    sampling_params,
)

logger = logging.getLogger("rsd_engine")

_HARNESS_DEVICE = "cuda:0"  # what its command line passes where nobody named a device
_Pair = tuple[tuple[str, str] | None, list[int], list[int]]  # cache key, context, continuation


@register_model("rsd")
class RsdLM(TemplateLM):
    """Reward-Guided Speculative Decoding as a model of lm-evaluation-harness.

    Args:
        given: the arguments of `Engine`, its policy and scorer as text; `threshold` in place of a
            policy; `mode`, `max_steps`, `max_step_tokens`, `prm_overflow`, `speculate`,
            `num_guesses`, `step_candidates`, `select` (as text) and `seed` as in
            `SamplingParams`; `max_gen_toks`, `question_field` and `chat_template_kwargs`, see
            `ModelArguments`.

    Raises:
        ModelArgumentError: an argument is unknown or not allowed, or the engine refuses it.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__()
        try:
            self._arguments = read_arguments(given)
            self.engine = Engine(**self._arguments.engine)
        except (ValueError, MemoryError) as error:
            raise ModelArgumentError(str(error)) from error
        self.tokenizer = self.engine.get_tokenizer()
        self._metrics = Metrics()
        self._chats: dict[str, dict[str, Any]] = {}  # what a context was rendered from

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> RsdLM:
        """The model of `name=value,name=value`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> RsdLM:
        """The model of a dict; what the harness adds counts where the dict says nothing."""
        added = {k: v for k, v in (additional_config or {}).items() if v is not None}
        if added.get("device") == _HARNESS_DEVICE and not torch.cuda.is_available():
            del added["device"]
        return cls(**{**added, **arg_dict})

    def close(self) -> None:
        """Frees the engine."""
        self.engine.close()

    # ------------------------------------------------------------------ facts

    @property
    def max_length(self) -> int:
        """Tokens of a context, the output included."""
        return self.engine.parts.rules.max_model_len

    @property
    def eot_token_id(self) -> int:
        """The end of text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """For the names of cached requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results: the sums over all outputs.

        `acceptance_rate` is the share of the draft's scored steps that were kept.
        """
        metrics = self._metrics
        return {"rsd": {"acceptance_rate": metrics.acceptance_rate, **asdict(metrics)}}

    # ------------------------------------------------------------------ text

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **more: Any
    ) -> list[int]:
        """Ids of a text; a chat template's beginning of text is not doubled."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        ids = self.tokenizer.encode(
            string, add_special_tokens=add_special_tokens, verbose=False, **more
        )
        return list(ids)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as text, which is remembered: the engine asks with the conversation.

        So the PRM reads the bare question, and a draft with another tokenizer its own template.
        """
        more = dict(self._arguments.chat_template_kwargs)
        text: str = self.tokenizer.apply_chat_template(
            chat_history, tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **more,
        )  # fmt: skip
        self._chats[text] = {
            "messages": [dict(message) for message in chat_history],
            "continue_final_message": not add_generation_prompt,
            "chat_template_kwargs": more,
        }
        return text

    # ------------------------------------------------------------------ the three kinds of requests

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Outputs of all requests, each up to its stop strings.

        Raises:
            ValueError: `generation_kwargs` of a task are not allowed.
        """
        if not requests:
            return []
        params = [self._params(index, request) for index, request in enumerate(requests)]
        prompts = [self._prompt(request) for request in requests]
        texts, num_full = [""] * len(requests), 0
        for index, result in self._results(prompts, params, "generate_until", disable_tqdm):
            [output] = result.outputs
            if output.finish_reason == "error":
                logger.error("generate_until: request %d failed: %s", index, output.error)
            else:
                self.cache_hook.add_partial("generate_until", requests[index].args, output.text)
            num_full += len(result.prompt_token_ids) == params[index].truncate_prompt_tokens
            self._metrics += result.metrics
            texts[index] = output.text
        if num_full:
            logger.warning(
                "generate_until: %d contexts fill all that max_model_len=%d leaves beside "
                "max_gen_toks; longer ones were cut at their beginning",
                num_full, self.max_length,
            )  # fmt: skip
        self._say_metrics()
        return texts

    def _loglikelihood_tokens(
        self, requests: Sequence[_Pair], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """For each continuation its log-probability by the target, and whether greedy writes it.

        Raises:
            ValueError: a continuation is longer than the model's context.
        """
        if not requests:
            return []
        most = self.max_length - 1  # the engine writes one token more
        prompts = [(context + continuation)[-most:] for _, context, continuation in requests]
        lengths = [len(continuation) for _, _, continuation in requests]
        if max(lengths) >= most:
            raise ValueError(
                f"a continuation has {max(lengths)} tokens; with max_model_len={self.max_length} "
                f"it may have at most {most - 1}"
            )
        has_target = "target" in self.engine.parts.rules.modes
        mode: Literal["target", "draft"] = "target" if has_target else "draft"
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, mode=mode)
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for index, result in self._results(prompts, params, "loglikelihood", disable_tqdm):
            found[index] = _loglikelihood(result, lengths[index])
            if (key := requests[index][0]) is not None:
                self.cache_hook.add_partial("loglikelihood", key, found[index])
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-probability of each text, window by window where it exceeds the context."""
        windows: list[_Pair] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            for window in self._windows(request.args[0]):
                windows.append((None, *window))
                owners.append(owner)
        totals = [0.0] * len(requests)
        scored = self._loglikelihood_tokens(windows, disable_tqdm)
        for owner, (logprob, _) in zip(owners, scored, strict=True):
            totals[owner] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    # ------------------------------------------------------------------ inside

    def _params(self, index: int, request: Any) -> SamplingParams:
        """Of one request, which never has the seed of another."""
        params = sampling_params(request.args[1], self._arguments)
        room = self.max_length - (params.max_tokens or 0)
        if room < 1:
            raise ValueError(
                f"max_gen_toks={params.max_tokens} leaves no room for the context; with "
                f"max_model_len={self.max_length} it may be at most {self.max_length - 1}"
            )
        seed = None if params.seed is None else params.seed + index
        return replace(params, seed=seed, truncate_prompt_tokens=room)

    def _prompt(self, request: Any) -> dict[str, Any]:
        context: str = request.args[0]
        prompt = dict(self._chats.get(context) or self._text(context))
        field = self._arguments.question_field
        if field is not None:
            if field not in request.doc:
                raise ValueError(
                    f"question_field={field!r} is not in the documents of this task, which have "
                    f"{sorted(request.doc)}"
                )
            prompt["question"] = str(request.doc[field])
        return prompt

    def _text(self, context: str) -> dict[str, Any]:
        """A context that is no conversation; only writers with one tokenizer take ids."""
        if self.engine.parts.rules.separate:
            return {"prompt": context}
        return {"prompt_token_ids": self.tok_encode(context), "question": context}

    def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        pairs = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length - 2,  # a window has one token more
            context_len=1,
        )
        yield from map(make_disjoint_window, pairs)

    def _results(
        self,
        prompts: Sequence[Mapping[str, Any] | list[int]],
        params: SamplingParams | list[SamplingParams],
        what: str,
        disable_tqdm: bool,
    ) -> Iterator[tuple[int, RequestOutput]]:
        """(index, result) as they end."""
        with tqdm(total=len(prompts), desc=f"Running {what} requests", disable=disable_tqdm) as bar:
            for index, result in self.engine.as_completed(prompts, params):
                yield index, result
                bar.update(1)

    def _say_metrics(self) -> None:
        metrics = self._metrics
        if metrics.acceptance_rate is not None:
            logger.info(
                "%d steps of the draft kept, %d rejected (%.1f %% kept)",
                metrics.steps_accepted, metrics.steps_rejected, 100 * metrics.acceptance_rate,
            )  # fmt: skip


def _loglikelihood(result: RequestOutput, length: int) -> tuple[float, bool]:
    """Of the last `length` tokens of a prompt."""
    if result.prompt_logprobs is None:
        raise RuntimeError(f"the log-likelihoods were not read: {result.outputs[0].error}")
    start = len(result.prompt_token_ids) - length
    own = [
        at[token]
        for token, at in zip(
            result.prompt_token_ids[start:], result.prompt_logprobs[start:], strict=True
        )
        if at is not None
    ]
    return sum(found.logprob for found in own), all(found.rank == 1 for found in own)
