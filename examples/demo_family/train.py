"""Trains the demo family, stage by stage.

    python -m examples.demo_family.train tokenizer --work DIR
    python -m examples.demo_family.train target --work DIR --minutes 70
    python -m examples.demo_family.train draft --work DIR --steps 900
    python -m examples.demo_family.train sample --work DIR --minutes 10
    python -m examples.demo_family.train prm --work DIR --minutes 110
    python -m examples.demo_family.train export --work DIR

Every stage resumes from its checkpoint in DIR; a larger --minutes extends a run.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from examples.demo_family.data import Batch, batches, language_rows, pools
from examples.demo_family.export import (
    export_language_model,
    export_reward_model,
)
from examples.demo_family.grow import grow
from examples.demo_family.loop import Pools, Trainer, TrainingOptions
from examples.demo_family.recipes import (
    LEARNING_RATE,
    RewardModel,
    count_parameters,
    language_model,
)
from examples.demo_family.reward_data import (
    TEMPERATURES,
    load_mistakes,
    reward_pools,
    sample_mistakes,
    save_mistakes,
)
from examples.demo_family.tokenizer import save_tokenizer, train_tokenizer
from rsd_engine.demo import ModelRole

BATCH_TOKENS = {"draft": 4096, "target": 2048, "prm": 2048}


def load_tokenizer(work: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a training folder, trained on first use."""
    folder = work / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        save_tokenizer(train_tokenizer(), folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def language_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Next-token loss on the solution."""
    with torch.autocast(batch.ids.device.type, torch.bfloat16):
        hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden.flatten(0, 1)[batch.word_at])
    return functional.cross_entropy(logits.float(), batch.word_labels)


def language_pools(tokenizer: PreTrainedTokenizerFast, seed: int, tokens: int) -> Pools:
    """Batches of solved problems, pool by pool."""

    def stream(start: int, rng: random.Random) -> Iterator[tuple[int, list[Batch]]]:
        for index, problems in pools(seed, start):
            yield index, batches(language_rows(tokenizer, problems, rng), tokens, rng)

    return stream


def train_language_model(args: argparse.Namespace) -> None:
    """Trains the draft or the target."""
    torch.manual_seed(args.seed)
    model = language_model(args.stage)
    print(f"{args.stage}: {count_parameters(model):,} parameters")
    seed = args.seed + (1 if args.stage == "draft" else 2)
    trainer = Trainer(model, _training_options(args))
    tokens = BATCH_TOKENS[args.stage]
    trainer.run(language_loss, language_pools(load_tokenizer(args.work), seed, tokens))


def reward_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Loss on right or wrong at every mark, and on the next token of right steps."""
    with torch.autocast(batch.ids.device.type, torch.bfloat16):
        hidden = model.hidden(batch.ids, batch.positions, batch.mask).flatten(0, 1)
        values = model.logits(hidden[batch.mark_at])
        words = model.words(hidden[batch.word_at])
    judged = functional.binary_cross_entropy_with_logits(
        values.float(), batch.mark_labels, batch.mark_weights, reduction="sum"
    )
    written = functional.cross_entropy(words.float(), batch.word_labels, reduction="sum")
    return judged / batch.mark_weights.sum() + 0.5 * written / (len(batch.word_labels) + 1)


def train_reward_model(args: argparse.Namespace) -> None:
    """Trains the reward model on wrong steps made on purpose and on mistakes sampled so far."""
    torch.manual_seed(args.seed)
    model = RewardModel()
    if args.grow_from is not None:
        grow(model, torch.load(args.grow_from, map_location="cpu")["average"])
    mistakes = load_mistakes(args.work / "mistakes.jsonl")
    print(f"prm: {count_parameters(model):,} parameters, {len(mistakes):,} problems with mistakes")
    trainer = Trainer(model, _training_options(args))
    tokens = BATCH_TOKENS["prm"]
    trainer.run(reward_loss, reward_pools(load_tokenizer(args.work), mistakes, 3, tokens))


def load_average(work: Path, role: ModelRole, device: str = "cpu") -> Any:
    """The model with the averaged weights of a checkpoint, ready for inference."""
    model: Any = RewardModel("sdpa") if role == "prm" else language_model(role, "sdpa")
    state = torch.load(work / f"{role}.pt", map_location=device)
    model.load_state_dict(state["average"])
    return model.to(device).eval()


def collect_mistakes(args: argparse.Namespace) -> None:
    """Samples mistakes of the draft and the target for the given minutes."""
    torch.manual_seed(args.seed)
    tokenizer = load_tokenizer(args.work)
    models = [load_average(args.work, "draft", args.device)]
    if (args.work / "target.pt").is_file() and not args.draft_only:
        models.append(load_average(args.work, "target", args.device))
    end = time.monotonic() + args.minutes * 60
    turn = 0
    while time.monotonic() < end:
        model = models[turn // 3 % len(models)] if turn % 3 == 2 else models[0]
        temperature = TEMPERATURES[turn % len(TEMPERATURES)]
        seed = 7_000_000_000 + args.seed * 1_000_000 + turn
        found = sample_mistakes(model, tokenizer, seed, 256, temperature)
        save_mistakes(args.work / "mistakes.jsonl", found)
        print(f"turn {turn} temperature {temperature} problems {len(found)} of 256", flush=True)
        turn += 1


def export(args: argparse.Namespace) -> None:
    """Writes the models that have been trained to DIR/export."""
    tokenizer, folder = load_tokenizer(args.work), args.work / "export"
    for role in ("draft", "target"):
        if (args.work / f"{role}.pt").is_file():
            export_language_model(load_average(args.work, role), tokenizer, folder / role)
    if (args.work / "prm.pt").is_file():
        export_reward_model(load_average(args.work, "prm"), tokenizer, folder / "prm")


def _training_options(args: argparse.Namespace) -> TrainingOptions:
    path, rate = args.work / f"{args.stage}.pt", args.rate or LEARNING_RATE[args.stage]
    return TrainingOptions(
        path, args.minutes, rate, args.seed, args.steps, args.device, compile=not args.eager
    )


def main() -> None:
    """Runs one stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    stages = {
        "tokenizer": lambda args: load_tokenizer(args.work),
        "draft": train_language_model,
        "target": train_language_model,
        "sample": collect_mistakes,
        "prm": train_reward_model,
        "export": export,
    }
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--steps", type=int, help="length of the run, in place of the minutes")
    parser.add_argument("--rate", type=float, help="learning rate, in place of the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: all)")
    parser.add_argument("--grow-from", type=Path, help="draft checkpoint to start the prm from")
    parser.add_argument("--draft-only", action="store_true", help="sample from the draft alone")
    parser.add_argument("--eager", action="store_true", help="do not compile the model")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    stages[args.stage](args)


if __name__ == "__main__":
    main()
