"""What requests may ask for where draft and target have different tokenizers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from rsd_engine import Engine, FinishedEvent, SamplingParams, Threshold
from rsd_engine.outputs import StepEvent
from rsd_kernels.state.enums import Phase, Role
from tests.engine.harness.runs import (
    PROMPTS,
    Reached,
    all_pages_free,
    decisions,
    generate,
    short_launches,
)
from tests.engine.harness.scripted import scripted
from tests.engine.two_vocabularies.families import Family
from tests.loop.executors.around import around_launches

ModelName = Literal["draft", "target"]
KEEP, REJECT = Threshold(0.0), Threshold(1.1)
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, policy=REJECT, seed=0)


@pytest.fixture
def engine(one_family: Family) -> Engine:
    return one_family.engine


def write(engine: Engine, texts: dict[Role, str], params: SamplingParams) -> Any:
    """The output of a request whose writers write these texts, each from the prompt on."""
    draft, target = texts[Role.DRAFT], texts[Role.TARGET]
    with scripted(engine, draft), scripted(engine, target, role=Role.TARGET):
        [result] = generate(engine, ["x"], params)
    assert all_pages_free(engine)
    return result.outputs[0]


@pytest.mark.parametrize(
    ("stop", "kept", "reason"),
    [
        ("\n\nc", "abc", "\n\nc"),  # across two steps of the target
        ("bc\n", "a", "bc\n"),
        ("\n\ncab", "abc", "\n\ncab"),
        ("zz", "abc\n\ncab\n\n", None),
    ],
)
@pytest.mark.parametrize("included", [False, True])
def test_stop_strings(
    engine: Engine, stop: str, kept: str, reason: str | None, included: bool
) -> None:
    """What the rejected steps wrote does not count."""
    texts = {Role.DRAFT: "zz\n\nzz\n\nzz</s>", Role.TARGET: "abc\n\ncab\n\n</s>"}
    params = SamplingParams(
        temperature=0.0, stop=stop, policy=REJECT, include_stop_str_in_output=included
    )
    output = write(engine, texts, params)
    assert output.finish_reason == "stop" and output.stop_reason == reason
    assert output.text == (kept + reason if included and reason else kept)
    assert output.text == "".join(step.text for step in output.steps)


@contextmanager
def rejecting_from_the_second_step_on(engine: Engine) -> Iterator[None]:
    """Whatever the rewards are."""
    state = engine.parts.core.state

    def change() -> None:
        state.policy_a.copy_(state.num_steps.float() * 1.1)

    with short_launches(engine, 1), around_launches(engine.parts.core, before=change):
        yield


def test_limits_count_tokens_as_they_were_written(engine: Engine) -> None:
    """The draft's step has 5 tokens of its own, and 13 of the target's."""
    texts = {Role.DRAFT: "abc" * 4 + "\n\nq\n\n", Role.TARGET: "abc" * 4 + "\n\nx</s>"}
    for minimum, maximum, wanted in ((0, 40, 7), (8, 40, 9), (0, 6, 6)):
        params = SamplingParams(
            temperature=0.0, policy=KEEP, min_tokens=minimum, max_tokens=maximum
        )
        with rejecting_from_the_second_step_on(engine):
            output = write(engine, texts, params)
        assert [step.source for step in output.steps] == ["draft", "target"]
        assert len(output.steps[0].token_ids) == 5 and len(output.token_ids) == wanted
        assert output.finish_reason == ("length" if wanted == maximum else "stop")


def test_a_stop_string_across_steps_of_both_writers(engine: Engine) -> None:
    """The draft's first step is kept, its second one is not; `c\\n\\nd` has letters of both."""
    texts = {Role.DRAFT: "abc\n\nabc</s>", Role.TARGET: "abc\n\ndef</s>"}
    params = SamplingParams(temperature=0.0, stop="c\n\nd", policy=KEEP)
    with rejecting_from_the_second_step_on(engine):
        output = write(engine, texts, params)
    assert output.text == "ab" and output.stop_reason == "c\n\nd"
    assert [step.source for step in output.steps] == ["draft", "target"]
    rejected = output.steps[1].rejected
    assert rejected is not None and rejected.text == "abc"


@pytest.mark.parametrize("policy", [KEEP, REJECT], ids=["draft", "target"])
@pytest.mark.parametrize("ignored", [False, True])
def test_end_of_text_of_each_writer(engine: Engine, policy: Threshold, ignored: bool) -> None:
    """Ids 268 and 1; each is an ordinary token, or none, to the other."""
    writers = engine.parts.rules.writers
    ids = {role: tokens.eos_ids for role, tokens in writers.items()}
    assert ids == {Role.DRAFT: {268}, Role.TARGET: {1}}
    texts = {Role.DRAFT: "abc</s>", Role.TARGET: "xyz</s>"}
    params = SamplingParams(temperature=0.0, policy=policy, max_tokens=8, ignore_eos=ignored)
    output = write(engine, texts, params)
    source = Role.DRAFT if policy == KEEP else Role.TARGET
    [eos] = ids[source]
    assert output.text == ("abc" if policy == KEEP else "xyz")
    letters = list(writers[source].encode(output.text))
    assert list(output.token_ids) == letters + [eos] * (8 - len(letters) if ignored else 1)
    assert (output.finish_reason, output.stop_reason) == ("length" if ignored else "stop", None)


def test_special_tokens_go_over_as_such(one_family: Family) -> None:
    """An end of text that is ignored is the other's end of text, not its letters."""
    engine = one_family.engine
    texts = {Role.DRAFT: "ab</s>", Role.TARGET: "ab</s>"}
    params = SamplingParams(
        temperature=0.0, policy=KEEP, max_tokens=6, max_step_tokens=3, ignore_eos=True
    )
    seen = []
    with around_launches(engine.parts.core, before=lambda: seen.append(_contexts(engine))):
        write(engine, texts, params)
    [*_, last] = [contexts for contexts in seen if contexts]
    tokenizer = one_family.two.models.tokenizer
    assert last[Role.TARGET] == [*tokenizer.encode("xab"), 1, 1]
    ab = one_family.two.draft_tokenizer.encode("ab", add_special_tokens=False)
    assert last[Role.DRAFT] == [*one_family.two.draft_tokenizer.encode("x"), *ab, 268, 268]


def _contexts(engine: Engine) -> dict[Role, list[int]]:
    running = engine.parts.core._slots[0]
    if running is None or running.contexts is None:
        return {}
    return {role: list(ids) for role, ids in running.contexts._ids.items()}


def test_a_stream_adds_up(engine: Engine) -> None:
    params = SamplingParams(
        temperature=1.0, max_tokens=40, seed=4, policy=Threshold(0.5), logprobs=2
    )
    for prompt in PROMPTS:
        *events, last = engine.stream(prompt, params)
        assert isinstance(last, FinishedEvent)
        output = last.output.outputs[0]
        kept = [e for e in events if isinstance(e, StepEvent) and e.kind == "kept"]
        assert "".join(event.text for event in kept) == output.text
        assert sum((event.token_ids for event in kept), ()) == output.token_ids
        told = [entry for event in kept for entry in event.logprobs or ()]
        assert output.logprobs is not None and tuple(told) == output.logprobs


def test_logprobs_have_the_names_of_their_writer(one_family: Family) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=40, policy=Threshold(0.5), logprobs=1)
    sources = set()
    for result in generate(one_family.engine, PROMPTS, params):
        output = result.outputs[0]
        entries = iter(output.logprobs or ())
        for step in output.steps:
            sources.add(step.source)
            tokenizer = one_family.two.tokenizer(step.source)
            named = [next(entries)[token] for token in step.token_ids]
            assert {entry.rank for entry in named} == {1}, "greedy"
            names = [entry.decoded_token for entry in named]
            assert "".join(names) == tokenizer.decode(
                list(step.token_ids), skip_special_tokens=True
            )
        assert next(entries, None) is None
    assert sources == {"draft", "target"}


def test_prompt_logprobs_are_the_targets(engine: Engine) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=12, prompt_logprobs=1, policy=REJECT)
    alone = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1, mode="target")
    plain = SamplingParams(temperature=0.0, max_tokens=12, policy=REJECT)
    ours, theirs = generate(engine, PROMPTS[:3], params), generate(engine, PROMPTS[:3], alone)
    for one, other in zip(ours, theirs, strict=True):
        assert one.prompt_logprobs is not None and one.prompt_logprobs == other.prompt_logprobs
    wanted = generate(engine, PROMPTS[:3], plain)
    assert list(map(decisions, ours)) == list(map(decisions, wanted))


@pytest.mark.parametrize("mode", ["draft", "target"])
def test_one_model_alone(one_family: Family, mode: ModelName) -> None:
    """Ids are those of the writer; all is as in an engine of this model alone."""
    folder = getattr(one_family.folders, mode)
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=20, mode=mode)
    ids = one_family.two.tokenizer(mode).encode("a sum\n\n1")
    biased = SamplingParams(
        temperature=0.0,
        max_tokens=9,
        mode=mode,
        logit_bias={ids[1]: 3.0},
        stop_token_ids=[ids[2]],
    )
    options: dict[str, Any] = {mode: folder, "step_delimiters": "\n\n", "device": "cpu"}
    with Engine(**options) as alone:
        for prompt, asked in (("a sum", params), (ids, params), (ids, biased)):
            [one] = alone.generate([prompt], asked, use_tqdm=False)
            [other] = one_family.engine.generate([prompt], asked, use_tqdm=False)
            assert other.outputs == one.outputs
            assert other.prompt_token_ids == one.prompt_token_ids


def test_ids_beyond_the_other_vocabulary(engine: Engine) -> None:
    """The draft's has 273 ids, the target's 267."""
    params = SamplingParams(mode="draft", max_tokens=3)
    [result] = engine.generate([[268, 270, 40]], params, use_tqdm=False)
    assert result.prompt_token_ids == (268, 270, 40)
    with pytest.raises(ValueError, match=r"prompt_token_ids must be in \[0, 266\], got 268"):
        engine.generate([[268]], SamplingParams(mode="target"), use_tqdm=False)


@pytest.mark.parametrize(
    ("prompt", "params", "words"),
    [
        ([40, 41], SamplingParams(), "prompt_token_ids cannot .* give the prompt as text or mess"),
        (
            {"prompt_token_ids": [40]},
            SamplingParams(),
            "prompt_token_ids cannot be used in mode 'r",
        ),
        ("a", SamplingParams(stop_token_ids=[40]), "stop_token_ids cannot .* as stop strings"),
        ("a", SamplingParams(logit_bias={4: 1.0}), "logit_bias cannot .* leave it out"),
        ("a", SamplingParams(allowed_token_ids=[4]), "allowed_token_ids cannot .* or use mode"),
        ("a" * 600, SamplingParams(), "draft: prompt has 601 tokens"),
    ],
)
def test_bad_requests(engine: Engine, prompt: Any, params: SamplingParams, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        engine.generate([prompt], params, use_tqdm=False)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"^prompts\[1\]: "):
        engine.generate(["b", prompt], [SamplingParams(), params], use_tqdm=False)
    assert not engine.parts.core.has_work


def test_each_writer_has_its_own_template(one_family: Family, tmp_path: Path) -> None:
    folders = one_family.folders
    draft = tmp_path / "draft"
    shutil.copytree(folders.draft, draft)
    path = draft / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["chat_template"] = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    path.write_text(json.dumps(settings))
    messages = [{"role": "user", "content": "1 + 2"}]
    params = SamplingParams(temperature=0.0, max_tokens=20, policy=Threshold(0.5))
    seen = []
    with Engine(draft, folders.target, folders.prm, device="cpu", max_num_seqs=1) as engine:
        core = engine.parts.core
        with around_launches(core, before=lambda: seen.append(_contexts(engine))):
            [result] = engine.chat(messages, params, use_tqdm=False)
        [alone] = engine.chat(messages, SamplingParams(max_tokens=1, mode="draft"), use_tqdm=False)
        settings["chat_template"] = None
    first = seen[0]
    encode = one_family.two.draft_tokenizer.encode
    assert first[Role.DRAFT] == encode("[1 + 2]", add_special_tokens=False)
    assert alone.prompt == "[1 + 2]" and list(alone.prompt_token_ids) == first[Role.DRAFT]
    wanted = one_family.two.models.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert first[Role.TARGET] == list(result.prompt_token_ids) == wanted
    path.write_text(json.dumps(settings))
    wanted_error = pytest.raises(ValueError, match="^draft: the tokenizer has no chat template")
    with Engine(draft, folders.target, folders.prm, device="cpu") as engine, wanted_error:
        engine.chat(messages, params, use_tqdm=False)


@pytest.mark.parametrize("phase", [Phase.TARGET, Phase.WAIT_HOST, Phase.SCORE])
def test_abort(engine: Engine, phase: Phase) -> None:
    core, params = (
        engine.parts.core,
        SamplingParams(
            temperature=1.0, seed=5, max_tokens=200, policy=Threshold(0.5), ignore_eos=True
        ),
    )
    [wanted] = generate(engine, [PROMPTS[0]], params)
    stream = engine.stream(PROMPTS[0], params)

    def look() -> None:
        if int(core.state.num_steps[0]) >= 2 and int(core.state.phase[0]) == phase:
            raise Reached

    watched = around_launches(core, before=look, after=look)
    with short_launches(engine, 1), watched, pytest.raises(Reached):
        for _ in engine.stream(PROMPTS[1], params):
            pass
    engine.abort(stream.request_id)
    *_, last = stream
    assert isinstance(last, FinishedEvent)
    assert last.output.outputs[0].finish_reason == "abort"
    found = decisions(last.output)
    assert len(found) >= 2 and found == decisions(wanted)[: len(found)]
    assert all_pages_free(engine)
