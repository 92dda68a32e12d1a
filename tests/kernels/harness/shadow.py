"""Runs the loop on a toy vocabulary with every op done twice: by its twin and by its kernel.

The kernel gets a copy of what the twin got, and must leave the same state behind, field by field.
So kernels see the states of a real run: slots in every phase, too few pages, rejected steps,
outputs that end, prompts read in several chunks.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rsd_kernels import ops
from rsd_kernels.policy.formula import PolicyKind
from rsd_kernels.state.enums import (
    NUM_ROLES,
    RATE_STEPS,
    ConfidenceKind,
    Mode,
    Phase,
    Role,
    Speculation,
)
from rsd_kernels.state.slots import SlotState
from tests.kernels.harness.forks import happened
from tests.kernels.harness.tensors import DEVICE
from tests.loop.toy import (
    NUM_IDS,
    EngineCore,
    around_steps,
    as_written,
    encode,
    run,
    toy_core,
    toy_end_merges,
    toy_ends,
    toy_request,
    toy_tables,
)
from tests.loop.two_vocabularies import (
    MAX_LEN,
    NUM_TARGET_IDS,
    for_two_vocabularies,
    two_vocabularies,
)

Op = Callable[..., None]
LOGPROBS = ("token_logprob", "top_logprob", "confidence", "reward")
LEAST_FLOAT = 1 << 23  # of the bits of one that is not tiny; ids and counts are smaller
TIMES = (  # clocks differ
    "pass_start", "nanoseconds", "tick_end", "tick_nanoseconds", "idle_nanoseconds",
)  # fmt: skip


def copied(value: Any, device: torch.device = DEVICE) -> Any:
    """A deep copy on the device under test."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True, memory_format=torch.contiguous_format)
    if hasattr(value, "__dataclass_fields__"):
        members = {f.name: copied(getattr(value, f.name), device) for f in fields(value)}
        return replace(value, **members)
    return value


def copied_on_cpu(value: Any) -> Any:
    """The same, for the twin."""
    return copied(value, torch.device("cpu"))


def differences(twin: Any, kernel: Any) -> list[str]:
    """Names of the fields in which two states (or batches) differ."""
    return [
        f.name
        for f in fields(twin)
        if f.name not in TIMES
        and isinstance(getattr(twin, f.name), Tensor)
        and not torch.equal(_bits(getattr(twin, f.name)), _bits(getattr(kernel, f.name).cpu()))
    ]


def differences_but_rounding(twin: SlotState, kernel: SlotState) -> list[str]:
    """The same for an op that computes logprobs: those agree within rounding, in the log too.

    Behind the PRM's context the kernel may leave the beginning of a step that did not fit.
    """
    loose = (*LOGPROBS, "log", "prm_tokens")
    names = [name for name in differences(twin, kernel) if name not in loose]
    read = torch.arange(twin.prm_tokens.shape[1]) < twin.prm_length[:, None]
    if not twin.prm_tokens[read].equal(kernel.prm_tokens.cpu()[read]):
        names.append("prm_tokens")
    for name in LOGPROBS:
        if not _close(getattr(twin, name), getattr(kernel, name).cpu()):
            names.append(name)
    ours, theirs = twin.log, kernel.log.cpu()
    wrong = ours != theirs
    ours, theirs = ours[wrong], theirs[wrong]
    real = (ours.abs() >= LEAST_FLOAT) & (theirs.abs() >= LEAST_FLOAT)
    if not (bool(real.all()) and _close(ours.view(torch.float32), theirs.view(torch.float32))):
        names.append("log")
    return names


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1.3e-6, atol=1e-5, equal_nan=True)


def _bits(tensor: Tensor) -> Tensor:
    """Equal exactly where the bits are: NaN equals itself."""
    return tensor.contiguous().view(torch.int32) if tensor.dtype == torch.float32 else tensor


class Shadow:
    """Replaces ops by ones that run twin and kernel; counts the calls of each."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        kernels: dict[str, Op],
        *,
        on_cpu: bool = False,
        change: Callable[[SlotState], None] | None = None,
    ) -> None:
        """on_cpu: both run on a CPU, and even logprobs agree bit for bit. change: they run in
        changed copies of the states of the run.
        """
        self.calls: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()  # in changed states
        self._on_cpu = on_cpu
        self._change = change
        for name, kernel in kernels.items():
            monkeypatch.setattr(ops, name, self.both(name, getattr(ops, name), kernel))

    def both(self, name: str, twin: Op, kernel: Op) -> Op:
        """Whatever goes wrong fails the test: an ordinary error would end only its request."""
        if self._change is None:
            return self._compared(name, twin, kernel)
        compared, change = self._compared(name, twin, kernel), self._change

        def op(state: SlotState, *args: Any, **options: Any) -> None:
            changed = copied_on_cpu(state)
            change(changed)
            before = copied_on_cpu(changed)
            compared(changed, *map(copied_on_cpu, args), **options)
            self.seen.update(happened(before, changed))
            twin(state, *args, **options)

        return op

    def _compared(self, name: str, twin: Op, kernel: Op) -> Op:
        def op(*args: Any, **options: Any) -> None:
            others = tuple(map(copied_on_cpu if self._on_cpu else copied, args))
            twin(*args, **options)
            self.calls[name] += 1
            call = f"{name}, call {self.calls[name]}"
            try:
                kernel(*others, **options)
            except Exception as error:
                pytest.fail(f"{call}: {error!r}")
            rounds = name == "write" and not self._on_cpu
            for ours, theirs in zip(args, others, strict=True):
                if hasattr(ours, "__dataclass_fields__"):
                    close = rounds and isinstance(ours, SlotState)
                    wrong = (differences_but_rounding if close else differences)(ours, theirs)
                    if wrong:
                        pytest.fail(f"{call}: {wrong} differ")

        return op


def random_requests(seed: int, count: int, *, logprobs: bool = True) -> list[Any]:
    """Requests of all modes, policies and limits."""
    rng = random.Random(seed)
    policies = (
        (PolicyKind.CONSTANT, 0.6, 0.0),
        (PolicyKind.THRESHOLD, 0.5, 0.0),
        (PolicyKind.CLIP, 0.0, 0.0),
        (PolicyKind.SIGMOIDAL, 0.0, 0.0),
        (PolicyKind.LOGISTIC, 5.0, 0.5),
    )
    requests = [
        toy_request(
            "".join(rng.choice("abcdef") for _ in range(rng.randint(1, 25))),
            mode=rng.choice([Mode.RSD, Mode.RSD, Mode.RSD, Mode.DRAFT, Mode.TARGET]),
            max_tokens=rng.randint(1, 30),
            max_steps=rng.randint(1, 6),
            max_step_tokens=rng.randint(1, 12),
            min_tokens=rng.choice([0, 0, 5]),
            delimiters=rng.choice([["\n\n"], ["."], ["\n\n", "ab", "c"]]),
            stop=rng.choice([[], [], ["ee", "fa."]]),
            temperature=rng.choice([0.0, 1.0, 0.7]),
            top_k=rng.choice([0, 0, 3]),
            top_p=rng.choice([1.0, 0.8]),
            min_p=rng.choice([0.0, 0.1]),
            repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
            seed=rng.randrange(2**63),
            sample_index=rng.randint(0, 3),
            num_logprobs=rng.choice([-1, -1, 0, 4]) if logprobs else -1,
            policy=rng.choice(policies),
            prm_step_ids=2,
            prm_transient=2,
        )
        for _ in range(count)
    ]
    if seed % 4 == 2:
        requests = [
            replace(request, prm_prompt=request.prompt if request.prm_prompt else ())
            for request in requests
        ]
    overflow_modes = (Mode.RSD, Mode.TARGET, Mode.DRAFT)
    return [
        replace(
            request,
            stream_tokens=i % 2 == 0 and request.mode != Mode.RSD,
            overflow_mode=overflow_modes[i % 3],
        )
        for i, request in enumerate(requests)
    ]


def random_writer(
    salt: int, num_ids: int = NUM_IDS, liked: str = ""
) -> Callable[[Sequence[int]], list[float]]:
    """Logits that depend on the row only; some rows cannot be sampled from."""

    def logits(row: Sequence[int]) -> list[float]:
        rng = random.Random(hash((salt, *row)))
        values = [rng.gauss(0.0, 2.0) for _ in range(num_ids)]
        for i in encode(liked):
            values[i] += 3.0
        if rng.random() < 0.01:
            values[rng.randrange(num_ids)] = float("nan")
        return values

    return logits


def random_core(
    seed: int,
    num_slots: int = 8,
    max_rows: int = 16,
    prm_max_len: int | None = None,
    confidence: ConfidenceKind = ConfidenceKind.NONE,
    *,
    two: bool = False,
    max_guesses: int = 0,
    ends: str = "written",
) -> EngineCore:
    """So few pages that slots lack some and are preempted; maybe with two vocabularies.

    For an odd seed there are ids around steps. For one that leaves 2 when divided by 4 the target
    scores its own context, if there is one vocabulary.

    ends: of kept steps: "written", or settled by the "host" or the "device".
    """

    def score(row: Sequence[int]) -> float:
        rng = random.Random(hash((seed, *row)))
        return float("nan") if rng.random() < 0.03 else rng.random()

    own = seed % 4 == 2 and not two
    liked = ".\n" if ends != "written" else ""
    return toy_core(
        random_writer(seed, liked=liked),
        random_writer(seed + 1, NUM_TARGET_IDS if two else NUM_IDS, liked),
        score,
        num_slots=num_slots,
        num_pages=62,
        max_rows=max_rows,
        max_len=MAX_LEN if two else 96,
        prm_max_len=prm_max_len,
        tables=as_written("ij") if own else around_steps(toy_tables()) if seed % 2 else None,
        vocabularies=two_vocabularies(around=seed % 2 == 1) if two else None,
        prm_kv=Role.DRAFT if confidence else Role.TARGET if own else Role.PRM,
        confidence=confidence,
        max_guesses=max_guesses,
        text_ends=toy_ends if ends != "written" else None,
        end_merges=toy_end_merges() if ends == "device" else None,
    )


def with_guesses(requests: Sequence[Any], seed: int) -> list[Any]:
    """The same requests with guesses from every source."""
    rng = random.Random(seed)
    sources = [*map(Speculation, range(8))]
    return [
        request
        if request.mode == Mode.DRAFT
        else replace(
            request, speculation=rng.choice(sources), guess_tokens=rng.choice([0, 1, 3, 9])
        )
        for request in requests
    ]


def run_shadowed(
    monkeypatch: pytest.MonkeyPatch,
    kernels: dict[str, Op],
    seed: int,
    count: int = 6,
    confidence: ConfidenceKind = ConfidenceKind.NONE,
    *,
    two: bool = False,
    max_guesses: int = 0,
    on_cpu: bool = False,
    ends: str = "written",
) -> Counter[str]:
    """Runs random requests to their ends; returns how often each op was compared."""
    shadow = Shadow(monkeypatch, kernels, on_cpu=on_cpu)
    requests = random_requests(seed, count)
    if max_guesses:
        requests = with_guesses(requests, seed)
    if two:
        requests = [for_two_vocabularies(request) for request in requests]
    core = random_core(seed, confidence=confidence, two=two, max_guesses=max_guesses, ends=ends)
    core.state.guesses_at_rate.copy_(torch.arange(RATE_STEPS + 1) // 6)
    run(core, requests)
    return shadow.calls


def make_rare(state: SlotState, rng: random.Random) -> None:
    """Puts in what a short run rarely meets: roles that waited, few pages, reasons to return."""
    for role in range(NUM_ROLES):
        state.role_wait[role] = rng.choice([0, 3, 15, 16, 17, 1023, 1024, 1500])
    state.last_role.fill_(rng.randrange(NUM_ROLES))
    if rng.random() < 0.3:
        state.num_free.fill_(rng.randint(0, min(4, int(state.num_free))))
    if rng.random() < 0.1:
        state.active[rng.randrange(state.num_slots)] = 0
    if rng.random() < 0.1:
        state.host_request.fill_(rng.choice([1, 2]))
    if rng.random() < 0.05:
        state.tick_cap.fill_(int(state.tick) + rng.choice([0, 1]))
    if rng.random() < 0.1:
        state.log_head.fill_(state.log.shape[0] - rng.randint(1, 400))
    if rng.random() < 0.05:
        phases = [Phase.WAIT_HOST, Phase.DONE, Phase.CHOICE]
        state.phase[rng.randrange(state.num_slots)] = rng.choice(phases)
