"""Read an answer step by step while it is being written, then two answers at once with asyncio.

Run: python examples/streaming.py
"""

from __future__ import annotations

import asyncio

from rsd_engine import Engine, FinishedEvent, SamplingParams
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import Problem, generate

PARAMS = SamplingParams(temperature=0.0, max_tokens=256)


def messages(problem: Problem) -> list[dict[str, str]]:
    return [{"role": "user", "content": problem.question}]


def read(engine: Engine, problem: Problem) -> None:
    for event in engine.stream(messages(problem), PARAMS):
        if isinstance(event, FinishedEvent):
            print(f"finished: {event.output.outputs[0].finish_reason}")
        elif event.kind == "kept":
            print(f"{event.source}: {event.text.strip()}")
        else:
            print(f"rejected at {event.reward:.2f}: {event.text.strip()}")


async def read_async(engine: Engine, name: str, problem: Problem) -> None:
    async for event in engine.stream(messages(problem), PARAMS):
        if not isinstance(event, FinishedEvent) and event.kind == "kept":
            print(f"{name}, {event.source}: {event.text.strip()}")


async def read_two(engine: Engine, first: Problem, second: Problem) -> None:
    await asyncio.gather(read_async(engine, "A", first), read_async(engine, "B", second))


def main() -> None:
    first, second, third = generate(seed=2, split="test", num=3)
    with Engine(checkpoint_dir("draft"), checkpoint_dir("target"), checkpoint_dir("prm")) as engine:
        print(first.question)
        read(engine, first)
        print("two at once")
        asyncio.run(read_two(engine, second, third))


if __name__ == "__main__":
    main()
