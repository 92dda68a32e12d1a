"""Greedy decoding of one model: this engine beside transformers' `generate`.

    python -m bench.decode

Both read the same fp32 weights with the same number of threads and write the same number of tokens,
which must be the same tokens before anything is timed. The ceiling is printed first: a decode step
takes at least the time to read its weights, or to compute its products. `limit_share` is the
bandwidth at which a decode step reads the weights, as a share of the measured one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.compare.smollm2 import checkpoint_folder
from bench.lib import report, timing
from bench.lib.options import command_parser
from bench.lib.rates import matrix_rate
from rsd_engine import Engine, SamplingParams
from rsd_engine.roofline.measured import read_bandwidth

CPU = torch.device("cpu")
OURS, BASELINE = "ours", "transformers"
# (prompts of ids, tokens each sequence gets) -> the new ids
Writer = Callable[[Sequence[list[int]], int], list[list[int]]]
# 118 tokens with SmolLM2's chat template; the digit makes the sequences of a batch different.
QUESTION = (
    "A library has three floors. The first floor holds four rooms, the second floor holds twice as "
    "many rooms as the first, and the third floor holds half as many rooms as the second. Every "
    "room has twelve shelves and every shelf carries thirty books. Explain step by step how many "
    "books the library holds in total, and say in two sentences how you would check that the total "
    "is right. Use plain words and no tables. Case {number}"
)


@dataclass(frozen=True)
class Contenders:
    """Functions that write tokens: two that must agree, and others to be timed beside them."""

    ours: Writer
    baseline: Writer
    num_parameters: int
    weight_bytes: int
    others: Mapping[str, Writer] = field(default_factory=dict)

    def named(self, prompts: Sequence[list[int]], num_tokens: int) -> dict[str, Callable[[], Any]]:
        writers = {OURS: self.ours, BASELINE: self.baseline, **self.others}
        return {name: partial(write, prompts, num_tokens) for name, write in writers.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    folder = checkpoint_folder(options.model)
    contenders = load_contenders(folder, max(options.batch), options.tokens)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batches = {size: prompts(tokenizer, size) for size in options.batch}
    require_agreement(contenders, batches, options.tokens)
    measured = {
        size: measure(contenders, batch, options.tokens, options.runs)
        for size, batch in batches.items()
    }
    print(report.format_table(HEADERS, [row for m in measured.values() for row in rows_of(m)]))
    result: dict[str, Any] = {f"ratio_batch{size}": m["ratio"] for size, m in measured.items()}
    result |= {f"batch{size}": m for size, m in measured.items()}
    if 1 in measured:
        result["limit_share"] = measured[1][OURS]["limit_share"]
        print(f"batch 1 decodes at {result['limit_share']:.0%} of the measured read bandwidth")
    result |= {
        "bench": "decode",
        "model": folder.name,
        "dtype": "float32",
        "prompt_tokens": len(batches[options.batch[0]][0]),
        "new_tokens": options.tokens,
        "runs": options.runs,
    }
    report.print_json(result)
    return 0


def require_agreement(
    contenders: Contenders, batches: Mapping[int, Sequence[list[int]]], num_tokens: int
) -> None:
    """The gate before timing.

    Raises:
        timing.Mismatch: the two contenders write different tokens.
    """
    for size, batch in batches.items():
        timing.require_same_tokens(
            contenders.ours(batch, num_tokens),
            contenders.baseline(batch, num_tokens),
            f"batch {size}, {num_tokens} greedy tokens",
        )
    print(f"gate passed: the same {num_tokens} greedy tokens in every sequence")


def prompts(tokenizer: Any, count: int) -> list[list[int]]:
    """Different prompts of the same length, so that the baseline needs no padding."""
    found = []
    for number in range(count):
        text = QUESTION.format(number=number % 10)
        messages = [{"role": "user", "content": text}]
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        found.append(tokenizer.encode(rendered, add_special_tokens=False))
    return found


def measure(
    contenders: Contenders, batch: Sequence[list[int]], num_tokens: int, runs: int
) -> dict[str, Any]:
    """The ceiling; then whole runs, and runs of one token for the time to the first token."""
    size = len(batch)
    bandwidth = read_bandwidth(CPU)
    bound = ceiling(contenders, size, bandwidth)
    whole = timing.alternate(contenders.named(batch, num_tokens), runs, warmup=0)
    first = timing.alternate(contenders.named(batch, 1), min(runs, 3), warmup=0)
    found: dict[str, Any] = {
        "batch": size,
        "contenders": list(whole),
        "ratio": whole[BASELINE].median / whole[OURS].median,
        "ceiling_tokens_per_second": bound,
    }
    for name in whole:
        decoding = whole[name].median - first[name].median
        found[name] = {
            "tokens_per_second": whole[name].rates(size * num_tokens),
            "spread": whole[name].spread,
            "first_token_seconds": first[name].median,
            "decode_tokens_per_second": size * (num_tokens - 1) / decoding,
            "limit_share": contenders.weight_bytes * (num_tokens - 1) / decoding / bandwidth,
            "seconds": list(whole[name].seconds),
        }
    return found


def ceiling(contenders: Contenders, batch: int, bandwidth: float) -> float:
    """Tokens per second if a step only read the weights, or only multiplied by them."""
    reading = bandwidth / contenders.weight_bytes
    multiplying = matrix_rate(CPU, torch.float32) / (2 * contenders.num_parameters * batch)
    return batch * min(reading, multiplying)


HEADERS = ("batch", "what", "tok/s", "min", "max", "spread", "first token s", "decode tok/s",
            "% of ceiling", "ratio")  # fmt: skip


def rows_of(m: dict[str, Any]) -> list[list[str]]:
    """The rows under HEADERS of what `measure` found; ratios are speeds over transformers'."""
    size, bound = str(m["batch"]), m["ceiling_tokens_per_second"]
    base = m[BASELINE]["tokens_per_second"]["median"]
    rows = [[size, "ceiling", "", "", "", "", "", f"{bound:.1f}", "100", ""]]
    for name in m["contenders"]:
        got = m[name]
        rate, decoding = got["tokens_per_second"], got["decode_tokens_per_second"]
        rows.append(
            [size, name, f"{rate['median']:.1f}", f"{rate['min']:.1f}", f"{rate['max']:.1f}",
             f"{got['spread']:.1%}", f"{got['first_token_seconds']:.3f}", f"{decoding:.1f}",
             f"{100 * decoding / bound:.0f}", f"{rate['median'] / base:.2f}"]
        )  # fmt: skip
    return rows


def load_contenders(folder: Path, max_batch: int, num_tokens: int) -> Contenders:
    """This engine and transformers, with the weights of `folder` in fp32."""
    engine = Engine(
        target=folder, dtype="float32", device="cpu", step_delimiters=None, max_num_seqs=max_batch,
        max_model_len=_context(folder, num_tokens), enable_prefix_caching=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # write on after end-of-text, as ours does
    return Contenders(
        ours=lambda batch, n: _ours(engine, batch, n),
        baseline=lambda batch, n: write_with_generate(model, batch, n),
        num_parameters=sum(p.numel() for p in model.parameters()),
        weight_bytes=engine.parts.models.main.model.weight_bytes,
    )


def _context(folder: Path, num_tokens: int) -> int:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return len(prompts(tokenizer, 1)[0]) + num_tokens


def _ours(engine: Engine, batch: Sequence[list[int]], num_tokens: int) -> list[list[int]]:
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    results = engine.generate(list(batch), params, use_tqdm=False)
    return [list(result.outputs[0].token_ids) for result in results]


@torch.inference_mode()
def write_with_generate(model: Any, batch: Sequence[list[int]], num_tokens: int) -> list[list[int]]:
    """The new ids of transformers' greedy `generate`; the prompts must be equally long."""
    ids = torch.tensor(batch)
    written = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return [row.tolist() for row in written[:, ids.shape[1] :]]


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("decode", __doc__)
    parser.add_argument("--model", help="folder or .gguf file (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of each sequence")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="sequences at once")
    return parser
