"""lm-evaluation-harness against `rsd serve`, by its own models for OpenAI servers."""

from __future__ import annotations

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

from bench.compare.effect import answers, greedy_trials
from rsd_engine import Engine, SamplingParams
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import generate
from rsd_engine.evaluate.summary import summarise
from tests.integrations.conftest import Harness
from tests.server.conftest import LiveServer

pytest.importorskip("tenacity", reason="needs lm-eval[api]")

TARGET = str(checkpoint_dir("target"))
PAIRS = [
    ("Tom has 3 apples. Tom buys 4 apples.", "\n\nTom now has 3 + 4 = 7 apples."),
    ("Tom now has 3 + 4", " = 7"),
    ("Tom now has 3 + 4", " = 9"),
    ("", "The answer is \\boxed{12}."),
    ("Nora has 12", " pens."),
]


def test_log_likelihoods_over_http_are_those_of_transformers(live: LiveServer) -> None:
    """Prompts go as token ids, several in a request."""
    model = get_model("local-completions").create_from_arg_obj(
        {
            "model": "demo",
            "base_url": f"{live.url}/v1/completions",
            "tokenizer": TARGET,
            "tokenizer_backend": "huggingface",
            "batch_size": 3,
            "max_length": 1024,
        }
    )
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(PAIRS)]
    ours = model.loglikelihood(requests)
    theirs = HFLM(pretrained=TARGET, device="cpu", dtype="float32", batch_size=1)
    wanted = theirs.loglikelihood(requests, disable_tqdm=True)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in wanted]
    logprobs = [logprob for logprob, _ in ours]
    assert logprobs == pytest.approx([logprob for logprob, _ in wanted], abs=1e-4)


def test_completions_over_http(live: LiveServer, engine: Engine) -> None:
    model = get_model("local-completions").create_from_arg_obj(
        {
            "model": "demo",
            "base_url": f"{live.url}/v1/completions",
            "tokenizer": TARGET,
            "tokenizer_backend": "huggingface",
            "batch_size": 2,
        }
    )
    arguments = {"until": ["answer"], "max_gen_toks": 40}
    prompts = [context + continuation for context, continuation in PAIRS[:2]]
    texts = model.generate_until(
        [Instance("generate_until", {}, (p, dict(arguments)), i) for i, p in enumerate(prompts)]
    )
    params = SamplingParams(temperature=0.0, max_tokens=40, stop=["answer"])
    results = engine.generate(prompts, params, use_tqdm=False)
    assert texts == [result.outputs[0].text for result in results]


def test_the_accuracy_over_http_is_that_of_the_benchmark(
    harness: Harness, live: LiveServer, engine: Engine
) -> None:
    _compare(harness, live, engine, 4)


@pytest.mark.slow
def test_the_accuracy_over_http_on_all_problems(
    harness: Harness, live: LiveServer, engine: Engine
) -> None:
    _compare(harness, live, engine, 500)


def _compare(harness: Harness, live: LiveServer, engine: Engine, problems: int) -> None:
    arguments = {
        "model": "demo",
        "base_url": f"{live.url}/v1/chat/completions",
        "num_concurrent": 8,
        "max_retries": 1,
    }
    accuracy, texts, _ = harness.run("local-chat-completions", problems, model_args=arguments)
    records = answers(engine, greedy_trials(["rsd"], [0.7]), generate(0, "test", problems))
    assert accuracy == summarise(records)[0].accuracy
    assert texts == [record.text for record in records]
