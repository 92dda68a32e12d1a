"""Part `decode` of `bench.compare`: this engine, transformers eager and compiled, llama.cpp, vLLM.

This adds contenders to `bench.decode`. Eager transformers must write the same tokens as this
engine. For the others the number of equal tokens is reported: they sum in another order, and where
two tokens tie, all that follows may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.compare import decode, smollm2
from bench.compare.peer_process import NotAvailable, Peer
from bench.compare.rsd_part import compared
from bench.lib import report
from bench.lib.timing import Timing
from bench.quantised.files import converted

COMPILED = "transformers, compiled"
SCRIPTS = {"llama.cpp": "peer_llama_cpp.py", "vLLM": "peer_vllm.py"}


def measure(
    model: str | None, batches: Sequence[int], num_tokens: int, runs: int, *,
    peers: Mapping[str, str | None], compiled: bool,
) -> dict[str, Any]:  # fmt: skip
    """The gate, then all contenders in alternation.

    Args:
        model: see `smollm2.checkpoint_folder`.
        batches: numbers of sequences at once.
        num_tokens: new tokens of each sequence.
        runs: timed runs of each contender.
        peers: Python interpreter by name; None if the user gave none.
        compiled: whether compiled transformers is a contender.
    """
    folder = smollm2.checkpoint_folder(model)
    contenders = decode.load_contenders(folder, max(batches), num_tokens)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = {size: decode.prompts(tokenizer, size) for size in batches}
    decode.require_agreement(contenders, prompts, num_tokens)
    context = len(prompts[batches[0]][0]) + num_tokens
    running, absent = _start_peers(peers, folder, model, context, max(batches))
    others: dict[str, decode.Writer] = {name: peer.write for name, peer in running.items()}
    if compiled:
        others = {COMPILED: _compiled(folder), **others}
    contenders = replace(contenders, others=others)
    try:
        found = {
            f"batch{size}": _measure_one(contenders, batch, num_tokens, runs, absent)
            for size, batch in prompts.items()
        }
    finally:
        for peer in running.values():
            peer.close()
    shapes = {"model": folder.name, "dtype": "float32", "prompt_tokens": context - num_tokens,
              "new_tokens": num_tokens}  # fmt: skip
    versions = {name: peer.version for name, peer in running.items()}
    return {**found, **shapes, "peer_versions": versions, "not_available": absent}


def _measure_one(
    contenders: decode.Contenders, batch: Sequence[list[int]], num_tokens: int, runs: int,
    absent: dict[str, str],
) -> dict[str, Any]:  # fmt: skip
    """One batch size; contenders that fail are added to `absent`."""
    ours = contenders.ours(batch, num_tokens)
    same, usable = {}, {}
    for name, write in contenders.others.items():
        try:
            same[name] = agreement(ours, write(batch, num_tokens))
        except Exception as error:  # a compiler and other engines raise anything
            absent[f"{name}, batch {len(batch)}"] = _first_line(error)
            continue
        usable[name] = write
    found = decode.measure(replace(contenders, others=usable), batch, num_tokens, runs)
    ours_, base = (Timing(tuple(found[n]["seconds"])) for n in (decode.OURS, decode.BASELINE))
    share = found[decode.OURS]["limit_share"]
    print(report.format_table(decode.HEADERS, decode.rows_of(found)))
    for name, why in absent.items():
        print(f"{name}: {why}")
    for name, count in same.items():
        print(f"{name} wrote {count} of the {len(batch) * num_tokens} tokens that the others wrote")
    return {**found, **compared(ours_, base), "limit_share": share, "same_tokens": same}


def agreement(ours: Sequence[list[int]], theirs: Sequence[list[int]]) -> int:
    """Number of tokens before the sequences differ."""
    total = 0
    for mine, other in zip(ours, theirs, strict=True):
        parts = [i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b]
        total += parts[0] if parts else min(len(mine), len(other))
    return total


def _compiled(folder: Path) -> decode.Writer:
    """`generate` with a static cache and a forward compiled by PyTorch."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.cache_implementation = "static"
    model.forward = torch.compile(model.forward)
    return partial(decode.write_with_generate, model)


def _start_peers(
    peers: Mapping[str, str | None], folder: Path, model: str | None, context: int, sequences: int
) -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that run, and for the others why they do not."""
    running: dict[str, Peer] = {}
    absent: dict[str, str] = {}
    settings = {"threads": torch.get_num_threads(), "context": context, "sequences": sequences}
    sources: dict[str, Callable[[], dict[str, str]]] = {
        "llama.cpp": lambda: {"gguf": str(_gguf(model))},
        "vLLM": lambda: {"folder": str(folder)},
    }
    for name, python in peers.items():
        if python is None:
            absent[name] = (
                f"not installed (name its Python with --{name.lower().replace('.', '-')})"
            )
            continue
        try:
            script = Path(__file__).parent / SCRIPTS[name]
            running[name] = Peer(python, script, settings | sources[name]())
        except NotAvailable as error:
            absent[name] = f"not installed: {error}"
    return running, absent


def _gguf(model: str | None) -> Path:
    """The weights for llama.cpp, in fp32.

    Raises:
        NotAvailable: `model` is a folder, which llama.cpp does not read.
    """
    path = smollm2.gguf_file() if model is None else Path(model).expanduser()
    if path.suffix != ".gguf":
        raise NotAvailable(f"llama.cpp reads GGUF files, and {path} is not one")
    return converted(path, "F32")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"not available: {type(error).__name__}: {lines[0] if lines else ''}"
