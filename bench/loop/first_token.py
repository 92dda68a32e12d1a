"""Starts an engine with its defaults, writes one token, and prints the seconds of every stage.

    python -m bench.loop.first_token FOLDER SECONDS

A process of its own for `bench.loop.startup`, so that nothing is imported or warm. SECONDS is the
time of day when the process was asked for. The last line is JSON.
"""

from __future__ import annotations

import json
import sys
import time


def main(folder: str, asked_at: str) -> int:
    stages = {"start Python": time.time() - float(asked_at)}
    start = time.perf_counter()
    from rsd_engine import Engine, SamplingParams  # what this takes is measured

    stages["import rsd_engine"] = time.perf_counter() - start
    with Engine(target=folder) as engine:
        stages |= engine.parts.start_seconds
        params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
        start = time.perf_counter()
        [result] = engine.generate("What is 2 + 3?", params, use_tqdm=False)
        stages["first token"] = time.perf_counter() - start
        facts = {
            "stages": stages,
            "seconds": time.time() - float(asked_at),
            "max_model_len": engine.parts.rules.max_model_len,
            "weights": sum(engine.memory.weights.values()),
            "pages": engine.memory.pool,
            "num_tokens": len(result.outputs[0].token_ids),
        }
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
