"""Weights in the blocks of their files: this engine beside llama.cpp, on the same GGUF files.

    python -m bench.quantised [--llama-cpp PYTHON]

SmolLM2-135M-Instruct as it is published (Q4_1), and the same in Q8_0 and BF16. Before anything is
timed the engine must write, from each file, the tokens that it writes from the expanded fp32
weights. llama.cpp rounds activations too, so its tokens may differ where two are nearly alike: ten
greedy texts of both are compared and the differences counted, and so they are with llama.cpp on the
expanded weights, where it rounds nothing. Then all run in alternation: decoding
of 1 and 8 sequences, and their prompts. `--llama-cpp` names a Python that has llama-cpp-python;
without it our own figures stand alone, beside our BF16.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from bench.compare import smollm2
from bench.compare.peer_process import NotAvailable, Peer
from bench.lib import report, timing
from bench.lib.options import command_parser, positive
from bench.quantised.files import converted
from bench.quantised.loading import loaded
from bench.quantised.measure import LLAMA_CPP, Speed, Task, Writer, measure, prompts_of
from bench.quantised.texts import compared
from rsd_engine import Engine, SamplingParams

PUBLISHED, EIGHT_BITS, HALF, EXACT = "Q4_1", "Q8_0", "BF16", "F32"
EXPANDED = f"{PUBLISHED}, expanded"
SCRIPT = Path(__file__).parents[1] / "compare" / "peer_llama_cpp.py"
HEADERS = ("file", "batch", "what", "decode tok/s", "min", "max", "prompt tok/s", "to llama.cpp",
           "prompt", "to ours in BF16")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    source = Path(options.model).expanduser() if options.model else smollm2.gguf_file()
    if not source.is_file():
        parser.error(f"--model must be a .gguf file, got {source}")
    files = {PUBLISHED: source} | {n: converted(source, n) for n in (EIGHT_BITS, HALF)}
    loading = {name: loaded(path) for name, path in files.items()}
    task = Task(options.prompt_tokens, options.tokens, max(options.batch))
    with ExitStack() as stack:
        engines = {name: stack.enter_context(_engine(path, task)) for name, path in files.items()}
        batches = {n: prompts_of(engines[PUBLISHED], task, n) for n in options.batch}
        _require_exact(source, engines, task, batches)
        writers: dict[str, dict[str, Writer]] = {
            name: {"ours": _writer(engine)} for name, engine in engines.items()
        }
        read = files | {EXPANDED: converted(source, EXACT)}
        peers, absent = _peers(read, task, options, stack)
        for name, peer in peers.items():
            if name in writers:
                writers[name][LLAMA_CPP] = peer.write
        texts = {
            name: compared(engines.get(name, engines[PUBLISHED]), peer.write)
            for name, peer in peers.items()
        }
        found = measure(writers, batches, task, options.runs)
    print(report.format_table(HEADERS, [row for speed in found for row in _row(speed, found)]))
    for name, load in loading.items():
        print(
            f"{name}: loaded in {load['load_seconds']:.2f} s, {load['peak_share']:.2f} x the file "
            "in memory"
        )
    for name, text in texts.items():
        print(f"{name}: {text}")
    if absent:
        print(absent)
    report.print_json(
        {
            "bench": "quantised", "model": source.name, "prompt_tokens": task.prompt_tokens,
            "new_tokens": task.tokens, "runs": options.runs, "loading": loading,
            "texts": {name: text.to_dict() for name, text in texts.items()},
            "not_available": absent,
            "speeds": [speed.to_dict(found) for speed in found],
        }
    )  # fmt: skip
    return 0


def _engine(path: Path, task: Task) -> Engine:
    return Engine(
        target=path, device="cpu", dtype="float32", step_delimiters=None,
        max_num_seqs=task.sequences, max_model_len=task.context, enable_prefix_caching=False,
    )  # fmt: skip


def _writer(engine: Engine) -> Writer:
    def write(batch: Sequence[list[int]], num_tokens: int) -> list[list[int]]:
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        results = engine.generate(list(batch), params, use_tqdm=False)
        return [list(result.outputs[0].token_ids) for result in results]

    return write


def _require_exact(
    source: Path,
    engines: dict[str, Engine],
    task: Task,
    batches: dict[int, list[list[int]]],
) -> None:
    """The gate: from each file the tokens of its expansion.

    Raises:
        timing.Mismatch: they differ.
    """
    for name, path in ((PUBLISHED, source), (EIGHT_BITS, converted(source, EIGHT_BITS))):
        with _engine(converted(path, EXACT), task) as exact:
            for size, batch in batches.items():
                timing.require_same_tokens(
                    _writer(engines[name])(batch, task.tokens),
                    _writer(exact)(batch, task.tokens),
                    f"{name}, batch {size}, {task.tokens} greedy tokens",
                )
    print(f"gate passed: {task.tokens} greedy tokens of every sequence are those of fp32 weights")


def _peers(
    files: dict[str, Path], task: Task, options: argparse.Namespace, stack: ExitStack
) -> tuple[dict[str, Peer], str | None]:
    """llama.cpp on every file; why not, if it cannot run."""
    if options.llama_cpp is None:
        return {}, "llama.cpp: not given (name its Python with --llama-cpp)"
    found = {}
    for name, path in files.items():
        settings = {"gguf": str(path), "threads": options.threads, "context": task.context,
                    "sequences": task.sequences}  # fmt: skip
        try:
            found[name] = Peer(options.llama_cpp, SCRIPT, settings)
        except NotAvailable as error:
            return {}, f"llama.cpp: not available: {error}"
        stack.callback(found[name].close)
    return found, None


def _row(speed: Speed, all_of_them: Sequence[Speed]) -> list[list[str]]:
    ratios = speed.ratios(all_of_them)
    rate = speed.decode_rates
    return [
        [
            speed.file, str(speed.batch), speed.who, f"{rate['median']:.1f}", f"{rate['min']:.1f}",
            f"{rate['max']:.1f}", f"{speed.prompt_rate:.0f}",
            *(f"{ratios[key]:.2f}" if key in ratios else "" for key in
              ("decode_to_llama_cpp", "prompt_to_llama_cpp", "decode_to_bf16")),
        ]
    ]  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("quantised", __doc__)
    parser.add_argument("--model", help="a .gguf file (default: SmolLM2-135M-Instruct, Q4_1)")
    parser.add_argument("--llama-cpp", help="a Python interpreter that has llama-cpp-python")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--prompt-tokens", type=positive, default=256)
    parser.add_argument("--tokens", type=positive, default=64, help="new tokens of each sequence")
    parser.add_argument("--runs", type=positive, default=5)
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 8])
    return parser
