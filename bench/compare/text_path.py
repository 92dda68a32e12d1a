"""Step ends: does the engine read what code reads that passes text from model to model?

    python -m bench.text_path --prompts gsm8k.jsonl

Answers prompts with SmolLM2 as draft and target and a stand-in reward model, greedily: once in the
paper's arrangement, where every call tokenises the whole text, and with this engine under each
value of `step_ends`. The first `--tokens` tokens of each answer are compared, step by step: texts,
decisions, and rewards. An answer that diverges is looked into: there is a tie within rounding, or
an earlier step has tokens inside it that are not those of its text, or it is an error.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from bench.compare.paper.agreement import REWARD_ERROR, TIE, as_kept_step, logit_gap
from bench.compare.paper.arrangement import DELIMITER, Answer, KeptStep, Limits, PaperArrangement
from bench.compare.paper.stand_in_prm import write_stand_in_prm
from bench.compare.paper.writers import EagerWriter, Loaded
from bench.compare.smollm2 import checkpoint_folder
from bench.lib import report
from bench.lib.options import command_parser, positive
from rsd_engine import CompletionOutput, Engine, SamplingParams, Step, Threshold
from rsd_engine.demo.problems import generate
from rsd_engine.steps.vocabulary import read_vocabulary

THRESHOLD = 0.5
ENDS = ("text", "tokens")
VERDICTS = ("same", "tie", "other tokens inside", "different")
_MARGIN = 8  # tokens written past those compared: the two programs count them differently


@dataclass(frozen=True)
class Verdict:
    """How one answer compares with the paper's arrangement.

    Attributes:
        kind: of `VERDICTS`.
        shown: what differs, for people.
    """

    kind: str
    shown: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    sets = read_sets(options.prompts, options.count, options.problems, options.seed)
    folder = checkpoint_folder(options.model)
    writer = Loaded.of(folder)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        prm = write_stand_in_prm(Path(work), writer.tokenizer)
        for name, questions in sets.items():
            found[name] = measure(folder, writer, prm, questions, options)
            print(show(name, found[name]), flush=True)
    wrong = sum(one["text"]["verdicts"]["different"] for one in found.values())
    report.print_json(
        {
            "bench": "text_path", "model": folder.name, "tokens": options.tokens,
            "seed": options.seed, "sets": found, "passed": wrong == 0,
        }
    )  # fmt: skip
    return 1 if wrong else 0


def read_sets(files: Sequence[str], count: int, problems: int, seed: int) -> dict[str, list[str]]:
    """Questions by the name of their set: the first `count` of each file, and demo problems.

    Raises:
        ValueError: a line of a file has no question.
    """
    sets = {}
    for file in map(Path, files):
        lines = file.read_text(encoding="utf-8").splitlines()[:count]
        sets[file.stem] = [_question(file, number, line) for number, line in enumerate(lines, 1)]
    if problems:
        sets["demo problems"] = [p.question for p in generate(seed, "test", problems)]
    return sets


def _question(file: Path, number: int, line: str) -> str:
    row = json.loads(line)
    for name in ("question", "problem"):
        if name in row:
            return str(row[name])
    raise ValueError(f"{file}:{number} has neither question nor problem; it has {sorted(row)}")


def measure(
    folder: Path, writer: Loaded, prm: Path, questions: Sequence[str], options: argparse.Namespace
) -> dict[str, Any]:
    """The verdicts and counts of each value of `step_ends`."""
    limit = options.tokens + _MARGIN
    arrangement = PaperArrangement(
        writer, writer, prm, threshold=THRESHOLD, limits=Limits(limit), calls=options.calls
    )
    answers = [
        answer
        for at in range(0, len(questions), options.slots)
        for answer in arrangement.solve(questions[at : at + options.slots])
    ]
    params = SamplingParams(temperature=0.0, max_tokens=limit, seed=0, policy=Threshold(THRESHOLD))
    found: dict[str, Any] = {}
    for ends in ENDS:
        with Engine(
            folder, folder, prm, dtype="float32", device="cpu", max_num_seqs=options.slots,
            max_model_len=2048, step_ends=ends,
        ) as engine:  # fmt: skip
            chats = [[{"role": "user", "content": question}] for question in questions]
            results = engine.chat(chats, params, use_tqdm=False)
            read = sum(result.metrics.draft.tokens_read for result in results)
        completions = [result.outputs[0] for result in results]
        verdicts = [
            compare(one, answer, arrangement, options.tokens)
            for one, answer in zip(completions, answers, strict=True)
        ]
        for index, verdict in enumerate(verdicts):
            if (verdict.kind == "different" and ends == "text") or verdict.kind == VERDICTS[2]:
                print(f"{ends}, answer {index}: {verdict.kind}: {verdict.shown}")
        counts = Counter(verdict.kind for verdict in verdicts)
        found[ends] = {
            "verdicts": {kind: counts[kind] for kind in VERDICTS},
            "draft_tokens_read": read,
            "steps": _step_kinds(completions, writer.tokenizer),
        }
    return found


def compare(
    ours: CompletionOutput, theirs: Answer, arrangement: PaperArrangement, tokens: int
) -> Verdict:
    """Compares the first `tokens` tokens of an answer; what they begin counts as text alone."""
    ends = list(accumulate(len(step.token_ids) for step in ours.steps))
    whole = [s for s, end in zip(ours.steps, ends, strict=True) if end <= tokens and _is_whole(s)]
    mine = [as_kept_step(step) for step in whole]
    at = _first_difference(mine, theirs.steps)
    if at is None:
        rest = _first_tokens(ours.steps[len(whole) :], tokens - sum(ends[len(whole) - 1 :][:1]))
        kept = "".join(step.text for step in whole)
        text = kept + arrangement.draft.tokenizer.decode(rest, skip_special_tokens=True)
        if theirs.written.startswith(text.removesuffix(DELIMITER)):
            return Verdict("same")
        at = len(whole)
    return _look_into(ours.steps, theirs, at, arrangement)


def _look_into(
    steps: Sequence[Step], theirs: Answer, at: int, arrangement: PaperArrangement
) -> Verdict:
    """Why step `at` differs."""
    a = as_kept_step(steps[at]) if at < len(steps) else None
    b = theirs.steps[at] if at < len(theirs.steps) else None
    if a is None or b is None:
        return Verdict("different", f"{len(steps)} steps of ours, {len(theirs.steps)} of theirs")
    before = theirs.prompt + "".join(step.text + DELIMITER for step in theirs.steps[:at])
    for writer, left, right in (
        (arrangement.draft, a.drafted, b.drafted), (arrangement.target, a.text, b.text),
    ):  # fmt: skip
        if left != right and logit_gap(writer, before, left, right) <= TIE:
            return Verdict("tie")
    if a.text == b.text and all(abs(s.reward - arrangement.threshold) <= TIE for s in (a, b)):
        return Verdict("tie")
    inside = tokens_inside(steps[:at], theirs.prompt, arrangement.draft)
    shown = (
        f"ours {a.text!r} {a.source} {a.reward:.4f}, theirs {b.text!r} {b.source} {b.reward:.4f}"
    )
    return Verdict(VERDICTS[2], inside) if inside else Verdict("different", f"step {at}: {shown}")


def tokens_inside(steps: Sequence[Step], prompt: str, writer: EagerWriter) -> str:
    """Where steps have tokens that are not those of the text, their ends apart; "" if nowhere."""
    token_bytes = read_vocabulary(writer.tokenizer).token_bytes
    [before, whole] = writer.encode([prompt, prompt + "".join(step.text for step in steps)])
    written = before + [token for step in steps for token in step.token_ids]
    data = b"".join(token_bytes[token] for token in written)
    at = sum(len(token_bytes[token]) for token in before)
    ends = set[int]()  # bytes of delimiters
    for step in steps:
        at += len(step.text.encode())
        ends |= set(range(at - len(DELIMITER), at))
    cuts = [set(accumulate(len(token_bytes[i]) for i in ids)) for ids in (whole, written)]
    differing = cuts[0] ^ cuts[1]
    inside = [
        data[start:end].decode(errors="replace")
        for start, end in pairwise(sorted({0} | (cuts[0] & cuts[1])))
        if any(start < cut < end for cut in differing) and ends.isdisjoint(range(start, end))
    ]
    return ", ".join(map(repr, inside))


def _pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    return list(tokenizer.batch_decode([[i] for i in ids], skip_special_tokens=True))


def _is_whole(step: Step) -> bool:
    return step.text.endswith(DELIMITER)


def _first_tokens(steps: Sequence[Step], count: int) -> list[int]:
    return [token for step in steps for token in step.token_ids][: max(count, 0)]


def _first_difference(mine: Sequence[KeptStep], theirs: Sequence[KeptStep]) -> int | None:
    for at, a in enumerate(mine):
        if at == len(theirs):
            return at
        b = theirs[at]
        same = (a.text, a.source, a.drafted) == (b.text, b.source, b.drafted)
        if not same or abs(a.reward - b.reward) > REWARD_ERROR:
            return at
    return None


def _step_kinds(completions: Sequence[CompletionOutput], tokenizer: Any) -> dict[str, int]:
    """How kept steps end, by what the models wrote."""
    kinds: Counter[str] = Counter()
    for completion in completions:
        for number, step in enumerate(completion.steps):
            last = _pieces(tokenizer, step.token_ids[-2:])
            if not _is_whole(step):
                first = number == 0 and completion.finish_reason == "stop"
                kinds["end of text in the first step" if first else "no delimiter"] += 1
                continue
            kinds["steps with a delimiter"] += 1
            kinds["two tokens"] += last == ["\n", "\n"]
            kinds["empty"] += step.text == DELIMITER
            kinds["a full stop before it"] += step.text.endswith("." + DELIMITER)
    return dict(kinds)


def show(name: str, found: dict[str, Any]) -> str:
    """The table for people."""
    rows = [
        [ends, *(str(one["verdicts"][kind]) for kind in VERDICTS), str(one["draft_tokens_read"])]
        for ends, one in found.items()
    ]
    table = report.format_table(("step_ends", *VERDICTS, "draft reads"), rows)
    steps = ", ".join(f"{kind}: {count}" for kind, count in found["text"]["steps"].items())
    return f"{name}\n{table}\n{steps}"


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("text_path", __doc__)
    parser.add_argument("--prompts", nargs="*", default=[], help="JSON lines with a question each")
    parser.add_argument("--count", type=positive, default=50, help="prompts of each file")
    parser.add_argument("--problems", type=int, default=0, help="problems of the demo family")
    parser.add_argument("--seed", type=int, default=0, help="seed of the problems")
    parser.add_argument("--tokens", type=positive, default=64, help="compared of each answer")
    parser.add_argument("--slots", type=positive, default=16, help="prompts answered at once")
    parser.add_argument("--model", help="folder or GGUF file (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--calls", default="read again", help="of the paper's arrangement")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    return parser
