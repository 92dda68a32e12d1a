"""Answer a batch of questions with the demo family, and show which model wrote each step.

Run: python examples/offline_batch.py
"""

from __future__ import annotations

from rsd_engine import Engine, SamplingParams, Threshold
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import check_answer, generate


def main() -> None:
    problems = generate(seed=1, split="test", num=6)
    conversations = [[{"role": "user", "content": p.question}] for p in problems]
    params = SamplingParams(temperature=0.0, max_tokens=256)
    with Engine(
        draft=checkpoint_dir("draft"),
        target=checkpoint_dir("target"),
        prm=checkpoint_dir("prm"),
        policy=Threshold(0.7),
    ) as engine:
        results = engine.chat(conversations, params)
        metrics = engine.metrics

    for problem, result in zip(problems, results, strict=True):
        completion = result.outputs[0]
        writers = " ".join(step.source for step in completion.steps)
        verdict = "right" if check_answer(problem, completion.text) else "wrong"
        print(f"{verdict}, {len(completion.steps)} steps: {writers}")
    print(
        f"{metrics.steps_accepted} draft steps accepted, {metrics.steps_rejected} rejected, "
        f"{metrics.flops.generated / 1e9:.2f} GFLOPs"
    )


if __name__ == "__main__":
    main()
