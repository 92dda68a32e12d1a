"""Plain completions: texts and token ids, several at once, echoed with log-probabilities."""

from __future__ import annotations

import pytest

from rsd_engine import Engine, SamplingParams
from rsd_engine.outputs import Logprob
from rsd_engine.server.replies import completion_logprobs
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


def test_echo_alone_writes_nothing(client: Client) -> None:
    """A prompt of which only log-probabilities are wanted is longer than the PRM need hold."""
    body = {"prompt": ["The answer is 12.", "Tom"], "max_tokens": 0, "echo": True, "logprobs": 1}
    answer = client.post(PATH, body).json()
    with_token = client.post(PATH, {**body, "max_tokens": 1}).json()
    assert [choice["text"] for choice in answer["choices"]] == body["prompt"]
    assert answer["usage"]["completion_tokens"] == 0
    for alone, other in zip(answer["choices"], with_token["choices"], strict=True):
        assert alone["finish_reason"] == "length"
        for name, values in alone["logprobs"].items():
            assert values == other["logprobs"][name][:-1]
    assert with_token["metrics"] is None  # nothing was scored
    refused = client.post(PATH, {"prompt": "Tom", "max_tokens": 0})
    assert refused.status_code == 400
    assert "max_tokens" in refused.json()["error"]["message"]


def test_of_two_tokens_with_one_text_the_likelier_is_told() -> None:
    own, best = Logprob(-3.0, 9, "\ufffd", (195,)), Logprob(-0.5, 1, "\ufffd", (196,))
    shape = completion_logprobs([5], [{5: own, 6: best}], 0)
    assert shape["token_logprobs"] == [-3.0]
    assert shape["top_logprobs"] == [{"\ufffd": -0.5}]
