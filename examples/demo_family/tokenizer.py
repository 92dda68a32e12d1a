"""The tokenizer that the three demo models share.

It is a byte-level BPE, which can encode any text, with a vocabulary of a few hundred words. Its
split pattern makes every digit a token, and the delimiter one token that never merges with its
neighbours, so a step has the same tokens by itself as inside a solution.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rsd_engine.demo.problems import DELIMITER, generate

VOCAB_SIZE = 960
MAX_LENGTH = 1024
PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, BOS, EOS, SYSTEM, USER, ASSISTANT)

# Delimiter, spaced operator, digit, box, possessive, word, punctuation, white space.
PATTERN = (
    r"\n\n| [-+*/=] |\d| ?\\[A-Za-z]+\{|'s| ?[A-Za-z]+"
    r"| ?[^\sA-Za-z0-9]+|\s"
)

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}{{- '<|system|>' + message['content'] + '\\n' }}"
    "{%- elif message['role'] == 'user' %}{{- '<|user|>' + message['content'] + '\\n' }}"
    "{%- elif message['role'] == 'assistant' %}"
    "{{- '<|assistant|>' + message['content'] + eos_token }}"
    "{%- else %}{{- raise_exception('unknown role: ' + message['role']) }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)

SYSTEM_PROMPTS = (
    "Please reason step by step, and put your final answer within \\boxed{}.",
    "You are a helpful assistant.",
    "Solve the problem step by step. Put one step in each paragraph.",
    "You are a careful math tutor. Explain every step and box the answer.",
    "Think step by step.",
)


def train_tokenizer(seed: int = 0, problems: int = 20_000) -> PreTrainedTokenizerFast:
    """Trains the vocabulary on problems, their solutions and a few system messages."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed, problems), trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def _corpus(seed: int, problems: int) -> Iterator[str]:
    for problem in generate(seed, "train", problems):
        yield problem.question
        yield problem.solution
    for prompt in SYSTEM_PROMPTS:
        for _ in range(problems // 20):
            yield prompt


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes the tokenizer files, with the chat template and the special tokens inside."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
        "add_bos_token": False,
        "add_eos_token": False,
    }
    path.write_text(json.dumps(config, indent=2) + "\n")
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


def delimiter_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id of the delimiter."""
    ids = tokenizer.encode(DELIMITER, add_special_tokens=False)
    if len(ids) != 1:
        raise ValueError(f"the delimiter must be one token, got {ids}")
    return int(ids[0])
