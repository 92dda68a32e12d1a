"""Plain completions: texts and token ids, several at once, echoed with log-probabilities."""

from __future__ import annotations

import pytest

from rsd_engine import Engine, SamplingParams
from tests.server.conftest import Client
from tests.server.test_chat import events_of

PATH = "/v1/completions"
PROMPTS = ["Tom has 3 apples.", "The answer is", "2 + 3 ="]


@pytest.mark.parametrize("as_ids", [False, True])
def test_several_prompts_come_back_in_order(
    client: Client, engine: Engine, *, as_ids: bool
) -> None:
    params = SamplingParams(temperature=0.7, seed=3, n=2, max_tokens=9, mode="draft")
    results = engine.generate(PROMPTS, params, use_tqdm=False)
    tokenizer = engine.get_tokenizer()
    given = [tokenizer.encode(p) for p in PROMPTS] if as_ids else PROMPTS
    body = {
        "prompt": given,
        "temperature": 0.7,
        "seed": 3,
        "n": 2,
        "max_tokens": 9,
        "rsd": {"mode": "draft"},
    }
    answer = client.post(PATH, body).json()
    wanted = [output.text for result in results for output in result.outputs]
    assert [choice["text"] for choice in answer["choices"]] == wanted
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    chunks = events_of(client.post(PATH, {**body, "stream": True}).text)
    texts = [""] * 6
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == wanted


def test_the_default_length_is_that_of_openai(client: Client) -> None:
    body = {"prompt": "The answer", "ignore_eos": True, "temperature": 0}
    assert client.post(PATH, body).json()["usage"]["completion_tokens"] == 16


def test_echo_gives_the_log_probabilities_of_the_prompt(client: Client, engine: Engine) -> None:
    """What lm-evaluation-harness asks for."""
    ids = engine.get_tokenizer().encode("The answer is 12.")
    body = {"prompt": [ids], "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    [choice] = client.post(PATH, body).json()["choices"]
    [result] = engine.generate(
        [ids],
        SamplingParams(temperature=0.0, max_tokens=1, logprobs=1, prompt_logprobs=1),
        use_tqdm=False,
    )
    assert result.prompt_logprobs is not None
    found = choice["logprobs"]["token_logprobs"]
    assert len(found) == len(ids) + 1
    assert found[0] is None
    for token, given, entry in zip(ids[1:], found[1:], result.prompt_logprobs[1:], strict=False):
        assert entry is not None
        assert given == pytest.approx(entry[token].logprob, abs=1e-5)
    assert all(len(top) in (1, 2) for top in choice["logprobs"]["top_logprobs"][1:])
