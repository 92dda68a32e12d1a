"""Step ends: does the engine read what code reads that passes text from model to model?

    python -m bench.text_path --prompts gsm8k.jsonl

Answers prompts with SmolLM2 as draft and target and a stand-in reward model, greedily, under each
value of `step_ends`; and problems of the demo family by that family. Every step is then compared
with what the paper's arrangement writes there: it tokenises the whole text again for every step,
and its reward model reads everything again. Where an answer departs, there is a tie within
rounding, or an earlier step has tokens inside it that are not those of its text, or it is an error.
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
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from bench.compare.effect import Models
from bench.compare.paper.agreement import TIE
from bench.compare.paper.arrangement import DELIMITER
from bench.compare.paper.replay import Replay, TextWriter
from bench.compare.paper.reward_model import EagerPrm
from bench.compare.paper.stand_in_prm import write_stand_in_prm
from bench.compare.paper.writers import Loaded
from bench.compare.smollm2 import checkpoint_folder
from bench.lib import report
from bench.lib.options import command_parser, positive
from rsd_engine import (
    CompletionOutput,
    Engine,
    RequestOutput,
    SamplingParams,
    Step,
    Threshold,
)
from rsd_engine.demo import ROLES, checkpoint_dir
from rsd_engine.demo.problems import Problem, check_answer, generate
from rsd_engine.steps.vocabulary import read_vocabulary

ENDS = ("text", "tokens")
VERDICTS = SAME, TIED, INSIDE, DIFFERENT = ("same", "tie", "other tokens inside", "different")


@dataclass(frozen=True)
class Setting:
    """How questions are answered: the threshold, the tokens of an answer, those of a context."""

    threshold: float
    tokens: int
    context: int


FAMILY = Setting(0.7, 256, 1024)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    sets = read_sets(options.prompts, options.count, options.problems, options.seed)
    found: dict[str, Any] = {}
    if options.family:
        problems = generate(options.seed, "test", options.family)
        demo = Models(*(checkpoint_dir(role) for role in ROLES))
        found["demo family"] = measure(demo, problems, FAMILY, options)
        print(show("demo family", found["demo family"]), flush=True)
    with tempfile.TemporaryDirectory() as work:
        if sets:
            folder = checkpoint_folder(options.model)
            prm = write_stand_in_prm(Path(work), AutoTokenizer.from_pretrained(folder))
            models = Models(folder, folder, prm)
        setting = Setting(0.5, options.tokens, 2048)
        for name, questions in sets.items():
            found[name] = measure(models, questions, setting, options)
            print(show(name, found[name]), flush=True)
    wrong = sum(one["text"]["verdicts"][DIFFERENT] for one in found.values() if "text" in one)
    report.print_json(
        {
            "bench": "text_path", "tokens": options.tokens, "seed": options.seed,
            "sets": found, "passed": wrong == 0,
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
    models: Models,
    asked: Sequence[str] | Sequence[Problem],
    setting: Setting,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """The verdicts and counts of each value of `step_ends`; right answers where they are known."""
    questions = [one if isinstance(one, str) else one.question for one in asked]
    loaded = {path: TextWriter(Loaded.of(path)) for path in {models.draft, models.target}}
    draft, target = loaded[models.draft], loaded[models.target]
    replay = Replay(draft, target, EagerPrm(models.prm, DELIMITER), setting.threshold)
    policy = Threshold(setting.threshold)
    params = SamplingParams(temperature=0.0, max_tokens=setting.tokens, seed=0, policy=policy)
    found: dict[str, Any] = {}
    for ends in options.step_ends:
        with Engine(
            models.draft, models.target, models.prm, dtype="float32", device="cpu",
            max_num_seqs=options.slots, max_model_len=setting.context, step_ends=ends,
        ) as engine:  # fmt: skip
            chats = [[{"role": "user", "content": question}] for question in questions]
            results = engine.chat(chats, params, use_tqdm=False)
        verdicts: Counter[str] = Counter()
        inside = 0
        for index, (question, result) in enumerate(zip(questions, results, strict=True)):
            kind, shown = verdict(replay, question, result)
            verdicts[kind] += 1
            if kind == INSIDE or (kind == DIFFERENT and ends == "text"):
                print(f"{ends}, answer {index}: {kind}: {shown}", flush=True)
            pieces = tokens_inside(result.outputs[0].steps, _prompt(draft, result), draft)
            inside += bool(pieces)
            if pieces and ends == "text":
                print(f"{ends}, answer {index}: other tokens for {pieces}", flush=True)
        completions = [result.outputs[0] for result in results]
        found[ends] = {
            "verdicts": {kind: verdicts[kind] for kind in VERDICTS},
            "other_tokens_inside": inside,
            "right": _right(asked, completions),
            "draft_tokens_read": sum(result.metrics.draft.tokens_read for result in results),
            "steps": _step_kinds(completions, draft.tokenizer),
        }
    return found


def _right(
    asked: Sequence[str] | Sequence[Problem], answers: Sequence[CompletionOutput]
) -> int | None:
    pairs = [
        (one, answer)
        for one, answer in zip(asked, answers, strict=True)
        if isinstance(one, Problem)
    ]
    return sum(check_answer(one, answer.text) for one, answer in pairs) if pairs else None


def _prompt(writer: TextWriter, result: RequestOutput) -> str:
    return str(writer.tokenizer.decode(result.prompt_token_ids))


def verdict(replay: Replay, question: str, result: RequestOutput) -> tuple[str, str]:
    """One of `VERDICTS`, and what differs, for people."""
    [answer] = result.outputs
    prompt = _prompt(replay.draft, result)
    found = replay.departure(prompt, question, answer)
    if found is None:
        return SAME, ""
    if found.gap <= TIE:
        return TIED, found.what
    inside = tokens_inside(answer.steps[: found.step], prompt, replay.draft)
    return (INSIDE, inside) if inside else (DIFFERENT, f"step {found.step}: {found.what}")


def tokens_inside(steps: Sequence[Step], prompt: str, writer: TextWriter) -> str:
    """Where steps have tokens that are not those of the text, their ends apart; "" if nowhere."""
    token_bytes = read_vocabulary(writer.tokenizer).token_bytes
    before = writer.encode(prompt)
    whole = writer.encode(prompt + "".join(step.text for step in steps))
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
    headers = ("step_ends", *VERDICTS, "with such tokens", "right", "draft reads")
    rows = [
        [ends, *(str(one["verdicts"][kind]) for kind in VERDICTS), str(one["other_tokens_inside"]),
         "-" if one["right"] is None else str(one["right"]), str(one["draft_tokens_read"])]
        for ends, one in found.items()
    ]  # fmt: skip
    table = report.format_table(headers, rows)
    steps = next(iter(found.values()))["steps"]
    return f"{name}\n{table}\n{', '.join(f'{kind}: {count}' for kind, count in steps.items())}"


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("text_path", __doc__)
    parser.add_argument("--prompts", nargs="*", default=[], help="JSON lines with a question each")
    parser.add_argument("--count", type=positive, default=50, help="prompts of each file")
    parser.add_argument("--problems", type=int, default=0, help="problems that SmolLM2 is asked")
    parser.add_argument("--family", type=int, default=0, help="and that the demo family is asked")
    parser.add_argument("--seed", type=int, default=0, help="seed of the problems")
    parser.add_argument("--tokens", type=positive, default=64, help="compared of each answer")
    parser.add_argument("--slots", type=positive, default=16, help="prompts answered at once")
    parser.add_argument("--model", help="folder or GGUF file (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--step-ends", nargs="*", choices=ENDS, default=list(ENDS))
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    return parser
