"""Puts the result of a request together from its samples."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from rsd_engine.engine.prompts import ResolvedPrompt
from rsd_engine.engine.results.sample import SampleBuilder
from rsd_engine.outputs import CompletionOutput, Logprob, Metrics, RequestOutput
from rsd_kernels.state.enums import Role


class RequestBuilder:
    """The result of one request, from its samples in order."""

    def __init__(
        self, request_id: str, prompt: ResolvedPrompt, seed: int, samples: list[SampleBuilder]
    ) -> None:
        self.request_id = request_id
        self.samples = samples
        self._open = len(samples)
        self._prompt = prompt
        self._seed = seed
        self._arrived = time.perf_counter()

    def end_sample(self) -> bool:
        """Counts a closed sample; whether it was the last one."""
        self._open -= 1
        return self._open == 0

    def output(self, parameters: Mapping[Role, int]) -> RequestOutput:
        """The result, once all samples are closed; what cannot be built is an error of a sample."""
        prompt_logprobs = self._prompt_logprobs()
        outputs = tuple(_completion(sample) for sample in self.samples)
        metrics = sum((s.metrics(parameters) for s in self.samples), start=Metrics())
        return RequestOutput(
            request_id=self.request_id,
            prompt=self._prompt.text,
            prompt_token_ids=self._prompt.token_ids,
            outputs=outputs,
            metrics=replace(metrics, seconds=time.perf_counter() - self._arrived),
            seed=self._seed,
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=self.samples[0].num_cached_tokens,
        )

    def _prompt_logprobs(self) -> tuple[dict[int, Logprob] | None, ...] | None:
        first = self.samples[0]
        try:
            return first.prompt_logprobs(self._prompt.token_ids)
        except Exception as error:
            first.fail(error)
            return None


def _completion(sample: SampleBuilder) -> CompletionOutput:
    try:
        return sample.completion()
    except Exception as error:
        sample.fail(error)
        return sample.failed_completion()
