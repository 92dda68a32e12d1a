"""transformers' `generate` with RSD: the engine's tokens, and the target's own where it decides."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    LogitsProcessorList,
    StoppingCriteriaList,
    TextDiffusionStreamer,
    TextIteratorStreamer,
)
from transformers.generation import (
    InfNanRemoveLogitsProcessor,
    MaxTimeCriteria,
    RepetitionPenaltyLogitsProcessor,
)

from rsd_engine import Constant, Engine, SamplingParams, Threshold
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import generate as make_problems
from rsd_engine.integrations.transformers import RewardGuidedOutput, generate, reward_guided
from rsd_engine.integrations.transformers.decoding import ENGINES
from rsd_engine.sampling_params import MAX_SEED
from tests.docs.documents import ROOT
from tests.integrations.memory_models import load_prm, load_writer

FOLDER = str(ROOT / "examples" / "custom_generate")
PROBLEMS = [problem.question for problem in make_problems(0, "test", 3, steps=(2, 3))]
MOST = 60


@dataclass(frozen=True)
class Family:
    """The models in memory, the prompts of some problems, and the arguments of every call."""

    target: Any
    tokenizer: Any
    own: dict[str, Any]

    def inputs(self, *questions: str) -> Any:
        chats = [[{"role": "user", "content": question}] for question in questions]
        return self.tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )

    def generate(self, *questions: str, **arguments: Any) -> Any:
        asked = {"max_new_tokens": MOST, "question": list(questions), **self.own, **arguments}
        return generate(self.target, **self.inputs(*questions), **asked)

    def plain(self, *questions: str, **arguments: Any) -> Tensor:
        """transformers' own decoding."""
        found: Tensor = self.target.generate(
            **self.inputs(*questions), **{"max_new_tokens": MOST, **arguments}
        )
        return found


@pytest.fixture(scope="module")
def family() -> Family:
    folder = str(checkpoint_dir("target"))
    models = {"draft_model": load_writer("draft"), "prm": load_prm()}
    return Family(
        load_writer("target"),
        AutoTokenizer.from_pretrained(folder, padding_side="left"),
        {**models, "engine_options": {"max_num_seqs": 4}},
    )


def chat(engine: Engine, *questions: str, **fields: Any) -> list[Any]:
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": MOST, **fields})
    chats = [[{"role": "user", "content": question}] for question in questions]
    return engine.chat(chats, params, use_tqdm=False)


def test_a_padded_batch_has_the_tokens_of_the_engine(family: Family, engine: Engine) -> None:
    found = family.generate(*PROBLEMS, threshold=0.7, return_dict_in_generate=True)
    assert isinstance(found, RewardGuidedOutput) and found.results is not None
    wanted = chat(engine, *PROBLEMS, policy=Threshold(0.7))
    inputs = family.inputs(*PROBLEMS)
    width = inputs.input_ids.shape[1]
    assert not inputs.attention_mask.all()
    assert torch.equal(found.sequences[:, :width], inputs.input_ids)
    for row, result, other in zip(found.sequences, found.results, wanted, strict=True):
        [output], ids = other.outputs, result.outputs[0].token_ids
        assert ids == output.token_ids == tuple(row[width : width + len(ids)].tolist())
        assert [step.source for step in result.outputs[0].steps] == [
            step.source for step in output.steps
        ]
        assert set(row[width + len(ids) :].tolist()) <= {family.tokenizer.pad_token_id}
    assert {step.source for r in found.results for step in r.outputs[0].steps} == {
        "draft",
        "target",
    }


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"max_new_tokens": None, "max_length": 150},
        {"min_new_tokens": 58},
        {"repetition_penalty": 1.2},
        {"eos_token_id": [2, 17]},
    ],
)
def test_where_all_is_rejected_the_target_writes_as_ever(
    family: Family, arguments: dict[str, Any]
) -> None:
    found = family.generate(*PROBLEMS, threshold=2.0, **arguments)
    assert torch.equal(found, family.plain(*PROBLEMS, **arguments))


def test_stop_strings_end_an_output_where_transformers_ends_it(family: Family) -> None:
    stops = {"stop_strings": ["answer"], "tokenizer": family.tokenizer}
    found = family.generate(PROBLEMS[0], threshold=2.0, **stops)
    assert torch.equal(found, family.plain(PROBLEMS[0], **stops))
    assert found.shape[1] < family.plain(PROBLEMS[0]).shape[1]


@pytest.mark.parametrize("form", ["callable", "folder"])
def test_the_forms_of_custom_generate(family: Family, form: str) -> None:
    how: dict[str, Any] = {"custom_generate": reward_guided}
    if form == "folder":
        how = {"custom_generate": FOLDER, "trust_remote_code": True}
    inputs = family.inputs(PROBLEMS[1])
    found = family.target.generate(
        **inputs, **how, **family.own, threshold=0.7, question=PROBLEMS[1], max_new_tokens=MOST
    )
    assert torch.equal(found, family.generate(PROBLEMS[1], threshold=0.7))


def test_sampling_follows_the_seed_of_torch(family: Family, engine: Engine) -> None:
    arguments = {"do_sample": True, "temperature": 2.0, "top_k": 50, "num_return_sequences": 3}
    torch.manual_seed(7)
    found = family.generate(
        PROBLEMS[0], **arguments, policy="constant:0.5", question=PROBLEMS[0], max_new_tokens=30
    )
    torch.manual_seed(7)
    seeds = torch.randint(MAX_SEED, (3,)).tolist()
    params = SamplingParams(
        temperature=2.0, top_k=50, max_tokens=30, policy=Constant(0.5), mode="rsd"
    )
    prompt = {"prompt_token_ids": family.inputs(PROBLEMS[0]).input_ids[0].tolist()}
    results = engine.generate(
        [{**prompt, "question": PROBLEMS[0]}] * 3,
        [replace(params, seed=seed) for seed in seeds],
        use_tqdm=False,
    )
    width = len(prompt["prompt_token_ids"])
    for row, result in zip(found, results, strict=True):
        ids = result.outputs[0].token_ids
        assert tuple(row[width : width + len(ids)].tolist()) == ids
    assert len({result.outputs[0].text for result in results}) > 1


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 2}, "the generation config asks for beam_search; only greedy search"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores=True is not"),
        ({"no_repeat_ngram_size": 3}, "the logits processor NoRepeatNGramLogitsProcessor cannot"),
        ({"bad_words_ids": [[5]]}, "the logits processor NoBadWordsLogitsProcessor cannot"),
        ({"do_sample": True, "typical_p": 0.5}, "the logits processor TypicalLogitsWarper cannot"),
        (
            {"logits_processor": LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.2, 3)])},
            r"a repetition penalty with prompt_ignore_length=\[3\] is not supported",
        ),
        ({"max_time": 3.0}, "the stopping criterion MaxTimeCriteria cannot run inside the engine"),
        (
            {"logits_processor": LogitsProcessorList([InfNanRemoveLogitsProcessor()])},
            "the logits processor InfNanRemoveLogitsProcessor cannot run inside the engine",
        ),
        (
            {"stopping_criteria": StoppingCriteriaList([MaxTimeCriteria(1.0)])},
            "the stopping criterion MaxTimeCriteria cannot",
        ),
        ({"threshold": 0.5, "policy": "clip"}, "threshold and policy exclude each other"),
        ({"policy": "sometimes"}, "policy = 'sometimes': unknown"),
        ({"draft_model": None}, "draft_model is missing"),
        ({"assistant_model": object()}, "assistant_model is for token-level speculation"),
        ({"question": ["one", "two"]}, "question must be one text, or 1, got 2"),
        ({"stop_strings": "x"}, "stop_strings need the tokenizer"),
        ({"prm": torch.nn.Linear(2, 2)}, "got a Linear without a config"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_before_any_work(
    family: Family, arguments: dict[str, Any], message: str
) -> None:
    before = len(ENGINES)
    with pytest.raises(ValueError, match=message) as caught:
        family.generate(PROBLEMS[0], **arguments)
    assert "\n" not in str(caught.value)
    assert len(ENGINES) == before


def test_a_streamer_is_for_one_row(family: Family) -> None:
    with pytest.raises(ValueError, match="a streamer is for one row, got 2"):
        family.generate(*PROBLEMS[:2], streamer=Recorder())


def test_a_cache_with_tokens_is_refused(family: Family) -> None:
    inputs = family.inputs(PROBLEMS[0])
    cache = family.target(**inputs).past_key_values
    with pytest.raises(ValueError, match="past_key_values holds [0-9]+ tokens"):
        family.generate(PROBLEMS[0], past_key_values=cache)


# ------------------------------------------------------------------ streamers


class Recorder:
    """A streamer that keeps what it gets."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []

    def put(self, value: Tensor) -> None:
        self.calls.append(("put", value.flatten().tolist()))

    def put_draft(self, value: Tensor) -> None:
        self.calls.append(("draft", value.tolist()))

    def end(self) -> None:
        self.calls.append(("end", []))


def test_a_streamer_gets_kept_tokens_and_drafts(family: Family) -> None:
    recorder = Recorder()
    found = family.generate(
        PROBLEMS[0], threshold=0.999, streamer=recorder, return_dict_in_generate=True
    )
    prompt = family.inputs(PROBLEMS[0]).input_ids[0].tolist()
    kinds = [kind for kind, _ in recorder.calls]
    assert recorder.calls[0] == ("put", prompt)
    assert kinds.count("end") == 1 and kinds[-1] == "end"
    put = [token for kind, ids in recorder.calls if kind == "put" for token in ids]
    assert put == found.sequences[0].tolist()
    rejected = [s.rejected for s in found.results[0].outputs[0].steps if s.rejected is not None]
    assert (
        [ids for kind, ids in recorder.calls if kind == "draft"]
        == [list(step.token_ids) for step in rejected]
        != []
    )


def test_rejected_drafts_are_shown_and_erased(
    family: Family, capsys: pytest.CaptureFixture[str]
) -> None:
    streamer = TextDiffusionStreamer(family.tokenizer, skip_prompt=True, skip_special_tokens=True)
    found = family.generate(
        PROBLEMS[0], threshold=2.0, streamer=streamer, return_dict_in_generate=True
    )
    shown = capsys.readouterr().out
    steps = found.results[0].outputs[0].steps
    assert shown.count("\0337\033[33m") == shown.count("\0338\033[J") == len(steps)
    for step in steps:
        assert f"\033[33m{step.rejected.text}" in shown
    without = shown.split("\0337")
    kept = without[0] + "".join(part.partition("\0338\033[J")[2] for part in without[1:])
    assert kept.strip() == found.results[0].outputs[0].text.strip()


@pytest.mark.parametrize("form", ["folder", "bound"])
def test_text_comes_while_it_is_written(family: Family, form: str) -> None:
    streamer = TextIteratorStreamer(family.tokenizer, skip_prompt=True, skip_special_tokens=True)
    how: dict[str, Any] = {"custom_generate": partial(reward_guided, streamer=streamer)}
    if form == "folder":
        how = {"custom_generate": FOLDER, "trust_remote_code": True, "streamer": streamer}
    arguments = {**family.own, **how, "question": PROBLEMS[1], "max_new_tokens": MOST}
    thread = threading.Thread(
        target=family.target.generate, kwargs={**family.inputs(PROBLEMS[1]), **arguments}
    )
    thread.start()
    text = "".join(streamer)
    thread.join()
    width = family.inputs(PROBLEMS[1]).input_ids.shape[1]
    ids = family.generate(PROBLEMS[1])[0, width:]
    assert text == family.tokenizer.decode(ids, skip_special_tokens=True)


def test_a_streamer_that_fails_is_told_the_end(family: Family) -> None:
    class Failing(Recorder):
        def put(self, value: Tensor) -> None:
            if self.calls:
                raise ZeroDivisionError
            super().put(value)

    recorder = Failing()
    with pytest.raises(ZeroDivisionError):
        family.generate(PROBLEMS[0], streamer=recorder)
    assert [kind for kind, _ in recorder.calls if kind != "draft"] == ["put", "end"]
    assert family.generate(PROBLEMS[0]).shape[0] == 1  # the engine goes on
