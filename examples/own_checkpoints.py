"""Answer one question with three models of your own: folders, hub ids or GGUF files.

Draft and target must share a tokenizer; the reward model may have its own.

Run: python examples/own_checkpoints.py \
    --draft Qwen/Qwen2.5-Math-1.5B-Instruct --target Qwen/Qwen2.5-Math-7B-Instruct \
    --prm Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B "What is 17 * 23?"
"""

from __future__ import annotations

import argparse

from rsd_engine import Engine, SamplingParams, Threshold


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer one question with three models.")
    for role in ("draft", "target", "prm"):
        parser.add_argument(f"--{role}", required=True, help="folder, hub id or GGUF file")
    parser.add_argument("--threshold", type=float, default=0.7, help="keep steps from this reward")
    parser.add_argument("--max-tokens", type=int, default=1024, help="limit of the answer")
    parser.add_argument("question")
    args = parser.parse_args()

    params = SamplingParams(temperature=0.0, max_tokens=args.max_tokens)
    with Engine(args.draft, args.target, args.prm, policy=Threshold(args.threshold)) as engine:
        [result] = engine.chat([{"role": "user", "content": args.question}], params, use_tqdm=False)

    for step in result.outputs[0].steps:
        reward = "" if step.reward is None else f" (reward {step.reward:.2f})"
        print(f"{step.source}{reward}: {step.text.strip()}")
        if step.rejected is not None:
            rejected = step.rejected
            print(f"    instead of (reward {rejected.reward:.2f}): {rejected.text.strip()}")
    print(f"finished: {result.outputs[0].finish_reason}")
    print(f"acceptance rate: {result.metrics.acceptance_rate}")


if __name__ == "__main__":
    main()
