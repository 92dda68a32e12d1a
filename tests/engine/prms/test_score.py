"""`Engine.score`: rewards of given steps, against the loop's and against plain forwards."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from rsd_engine import Engine, RequestOutput, SamplingParams, TargetJudge, Threshold
from rsd_engine.core import solution_rewards
from rsd_engine.core.solution_rewards import SolutionRewards
from rsd_engine.engine.rewards import step_scoring
from rsd_engine.models.heads import RewardModel
from rsd_engine.outputs import FinishedEvent
from rsd_kernels.state.enums import Role
from rsd_kernels.state.rows import RowBatch
from tests.engine.harness.runs import (
    PROMPTS,
    Fresh,
    all_pages_free,
    decisions,
    generate,
    poison_free,
    prm_rows,
)
from tests.models.reward.family_checkpoints import CASES
from tests.tiny_models import PRM_CONTEXT, TinyModels, make_tiny_models

KEEP_ALL = SamplingParams(
    temperature=1.0,
    seed=3,
    max_tokens=90,
    max_step_tokens=25,
    ignore_eos=True,
    policy=Threshold(-1.5),
)


@pytest.fixture(scope="module", params=["device", "text", "two classes"])
def any_engine(
    request: pytest.FixtureRequest,
    tiny: TinyModels,
    other_prm: TinyModels,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Engine]:
    if request.param == "two classes":
        models = make_tiny_models(tmp_path_factory.mktemp("two"), two_class=True)
    else:
        models = tiny if request.param == "device" else other_prm
    with Engine(**models.sources(), max_num_seqs=4, device="cpu") as built:
        yield built


def texts_of(result: RequestOutput) -> list[str]:
    return [step.text for step in result.outputs[0].steps]


def rewards_of(result: RequestOutput) -> list[float]:
    found = [step.reward for step in result.outputs[0].steps]
    return [reward for reward in found if reward is not None]


def same(found: Sequence[float], wanted: Sequence[float]) -> bool:
    return found == pytest.approx(wanted, abs=1e-5)


def test_rewards_are_those_of_the_loop(any_engine: Engine) -> None:
    results = generate(any_engine, PROMPTS, KEEP_ALL)
    poison_free(any_engine)
    scored = any_engine.score(list(PROMPTS), [texts_of(result) for result in results])
    for result, found in zip(results, scored, strict=True):
        assert same(found.rewards, rewards_of(result)) and len(found.rewards) > 1
        assert [step.text for step in found.steps] == texts_of(result)
        assert found.question == result.prompt
        assert found.tokens_read == len(prm_rows(any_engine, result)[-1])  # each token once
    assert all_pages_free(any_engine)


def test_no_step_may_end_in_a_pass(engine: Engine) -> None:
    """A question that is longer than a pass has rows."""
    question = "What is 2 + 3? " * 28
    [result] = generate(engine, [question], KEEP_ALL)
    [found] = engine.score(question, texts_of(result))
    assert same(found.rewards, rewards_of(result)) and len(found.rewards) > 1
    assert len(prm_rows(engine, result)[0]) > step_scoring.MAX_ROWS


@pytest.mark.parametrize("name", ["Universal-PRM", "RLHFlow-PRM", "PURE-PRM"])
def test_formats_of_other_families(name: str, tiny: TinyModels, tmp_path: Path) -> None:
    """Ids that are forgotten again, ids in front of a step, rewards below 0."""
    prm = CASES[name].make(tmp_path / CASES[name].folder)
    with Engine(tiny.draft, tiny.target, prm.folder, max_num_seqs=4, device="cpu") as built:
        results = generate(built, PROMPTS, KEEP_ALL)
        scored = built.score(list(PROMPTS), [texts_of(result) for result in results])
        for result, found in zip(results, scored, strict=True):
            assert same(found.rewards, rewards_of(result)) and len(found.rewards) > 1
            counted = result.metrics.prm
            assert found.tokens_read == counted.tokens_read + counted.cached_tokens
        assert all_pages_free(built)


def test_every_way_to_give_solutions(engine: Engine) -> None:
    """A list of steps, a text that is cut, many for a question, and conversations."""
    steps, other = ["we add.\n\n", "5\n\n\n", "x"], ["it is 6"]
    [wanted] = engine.score("What is 2 + 3?", steps)
    [second] = engine.score("What is 2 + 3?", other)
    assert wanted.rewards != second.rewards and len(wanted.rewards) == 3
    text = "".join(steps)
    chat: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": text},
    ]
    parts = [*chat[:2], {"role": "assistant", "content": [{"type": "text", "text": text}]}]
    without_delimiters = ["we add.", "5", "\nx"]
    cut = [s.text for s in engine.score("What is 2 + 3?", text)[0].steps]
    assert cut == ["we add.\n\n", "5\n\n", "\nx"]
    for found in (
        engine.score("What is 2 + 3?", text),
        engine.score(chat),
        engine.score({"question": "What is 2 + 3?", "steps": text}),
        engine.score([{"messages": chat}]),
        engine.score([chat, parts])[1:],
        engine.score("What is 2 + 3?", [other, without_delimiters])[1:],
        engine.score(["x", "What is 2 + 3?"], [other, text])[1:],
    ):
        assert len(found) == 1 and found[0].question == "What is 2 + 3?"
        assert same(found[0].rewards, engine.score("What is 2 + 3?", without_delimiters)[0].rewards)
    assert engine.score([], []) == engine.score([]) == [] and engine.score("x", "")[0].rewards != []
    assert wanted.to_dict()["steps"][0] == {"text": "we add.\n\n", "reward": wanted.rewards[0]}


def test_long_solutions_and_many_in_a_pass(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of one solution, and small solutions that share passes; pages in between are free."""
    passes: list[tuple[int, int]] = []
    read = RewardModel.read

    def counted(model: RewardModel, batch: RowBatch, kv: Any, page_table: Tensor) -> None:
        passes.append((batch.num_rows, batch.num_seqs))
        read(model, batch, kv, page_table)

    monkeypatch.setattr(RewardModel, "read", counted)
    monkeypatch.setattr(solution_rewards, "TOKENS_PER_TURN", 900)
    solutions = [["ab" * 90, "c" * 150, "1 + 1"] * n for n in (1, 2, 1)] + [["x", "y"]] * 30
    scored = engine.score("What?", solutions)
    fresh = Fresh(engine)
    prm = engine.parts.models.prm
    assert prm is not None
    for steps, found in list(zip(solutions, scored, strict=True))[:4]:
        row = prm.format.prompt_ids("What?")
        for step, reward in zip(steps, found.rewards, strict=True):
            row = [*row, *prm.format.step_tokens(step, is_first=False)]
            assert reward == pytest.approx(fresh.reward(row), abs=1e-5)
    assert len({tuple(found.rewards) for found in scored[3:]}) == 1
    assert max(seqs for _, seqs in passes) >= 10 and max(rows for rows, _ in passes) == 256
    assert sum(rows for rows, _ in passes) >= sum(found.tokens_read for found in scored)
    assert len(passes) < len(solutions)


def test_while_requests_run(engine: Engine) -> None:
    """Between the launches of others: neither sees the other."""
    params = replace(KEEP_ALL, policy=Threshold(0.5))
    wanted = [decisions(result) for result in generate(engine, PROMPTS, params)]
    steps = ["we add.", "5"]
    alone = engine.score("What is 2 + 3?", steps)[0].rewards
    begun, stop = threading.Event(), threading.Event()
    core = engine.parts.core
    before, core.ticks_per_launch = core.ticks_per_launch, 3

    def score_on() -> int:
        begun.wait(60)
        count = 0
        while not stop.is_set():
            for found in engine.score("What is 2 + 3?", [steps] * 3):
                assert same(found.rewards, alone)
            count += 1
        return count

    try:
        with ThreadPoolExecutor(1) as pool:
            scoring = pool.submit(score_on)
            begun.set()
            results = [generate(engine, PROMPTS, params) for _ in range(3)]
            stop.set()
            assert scoring.result(60) > 0
    finally:
        core.ticks_per_launch = before
    for found in results:
        assert [decisions(result) for result in found] == wanted
    assert core.num_waiting == 0


def test_without_free_pages_it_waits_its_turn(
    tiny: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests fill the pool; a third one does not start before the rewards are there."""
    sizes: dict[str, Any] = {"device": "cpu", "max_num_seqs": 2, "max_model_len": 150}
    steps = ["c" * 150, "d" * 120]
    with Engine(**tiny.sources(), **sizes) as roomy:
        pool = roomy.parts.pool
        memory = roomy.parts.core.state.free_pages.shape[0] // 2 * pool.page_bytes
        [wanted] = roomy.score("What?", steps)
    params = replace(KEEP_ALL, ignore_eos=True, max_tokens=140, policy=Threshold(0.5))
    told: list[tuple[bool, list[int | None]]] = []
    read_some = SolutionRewards.read_some

    def watched(work: SolutionRewards) -> None:
        read_some(work)
        told.append((work.lacks_pages, list(core.slot_keys)))

    monkeypatch.setattr(SolutionRewards, "read_some", watched)
    with Engine(**tiny.sources(), **sizes, kv_cache_memory_bytes=memory) as tight:
        core = tight.parts.core
        core.ticks_per_launch = 1
        streams = [iter(tight.stream(prompt, params)) for prompt in ("abc", "b", "c")]
        needed = -(-280 // core.loop.tokens_per_page[Role.PRM])
        while int(core.state.num_free) >= needed:
            next(streams[0])
        with ThreadPoolExecutor(4) as threads:
            scoring = threads.submit(tight.score, "What?", steps)
            ends = [threads.submit(lambda s=s: list(s)[-1]) for s in streams]  # type: ignore[misc]
            [found] = scoring.result(60)
            assert all(isinstance(end.result(60), FinishedEvent) for end in ends)
        assert same(found.rewards, wanted.rewards)
        assert [lacks for lacks, _ in told[:1]] == [True] and told[-1][0] is False
        assert all(2 not in keys for _, keys in told)
        assert all_pages_free(tight) and core.num_waiting == 0


def test_a_failure_gives_the_pages_back(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(RewardModel, "read", fails)
        with pytest.raises(RuntimeError, match="no more"):
            engine.score("x", ["a"])
    assert all_pages_free(engine) and engine.parts.core.num_waiting == 0
    assert len(engine.score("x", ["a"])[0].rewards) == 1


BAD: list[tuple[tuple[Any, ...], str]] = [
    (("x", []), "steps is empty; it needs at least one step"),
    (("x", 3), "steps must be text or a list of texts, got int"),
    (("x", [["a"], []]), r"solutions\[1\]: steps is empty"),
    (("x", [["a"], [4]]), r"solutions\[1\]: a step must be text, got 4"),
    ((4, ["a"]), "several questions must be a list, and steps a list .* got int and 1"),
    ((["x"], [["a"], ["b"]]), "with one entry for each, got 1 and 2"),
    (([3], [["a"]]), "question must be text, got 3"),
    (("x",), "score takes a question and its steps, or messages .* got str and no steps"),
    (([{"role": "user", "content": "x"}],), "the last of several messages must be the assistant's"),
    (
        ([[{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]] * 2,),
        r"solutions\[0\]: the last of several messages .* got one of 'user'",
    ),
    (
        ([{"question": "x"}],),
        r"a solution dict must have .* or 'messages', got keys \['question'\]",
    ),
    (("x", ["a" * 2000]), rf"take 2\d\d\d tokens of the PRM's context, which holds {PRM_CONTEXT}"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[m[:40] for _, m in BAD])
def test_what_is_not_allowed(engine: Engine, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        engine.score(*arguments)
    assert not re.search("\n", str(caught.value))


def test_it_needs_a_prm_and_an_open_engine(tiny: TinyModels) -> None:
    match = "score needs a PRM"
    with Engine(target=tiny.target, device="cpu") as alone, pytest.raises(ValueError, match=match):
        alone.score("x", ["a"])
    judged = Engine(tiny.draft, tiny.target, scorer=TargetJudge(), device="cpu")
    with judged, pytest.raises(ValueError, match=match):
        judged.score("x", ["a"])
    with pytest.raises(ValueError, match="the engine is closed"):
        alone.score("x", ["a"])
