"""Small tokenizers of every kind the engine meets, trained in a moment on text made here."""

from __future__ import annotations

import json
import random
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

# Splits as Qwen2 does: punctuation takes the newlines after it, so `.\n\n` may become one token.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = ["we", "add", "two", "then", "three", "the sum", "is five", "so x", "é", "ü", "日本"]
CHAT_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@cache
def corpus() -> list[str]:
    rng = random.Random(0)
    lines = []
    for _ in range(400):
        words = [rng.choice(WORDS) for _ in range(rng.randint(1, 6))]
        words += [str(rng.randint(0, 99))] * rng.randint(0, 1)
        end = rng.choice([".", ".", "!", ")", "$.", "$", ""])
        newlines = rng.choice(["\n\n", "\n\n", "\n", "\n\n\n", "\n\n\n\n"])
        lines.append(" ".join(words) + end + newlines)
    return ["".join(lines[i : i + 8]) for i in range(0, len(lines), 8)]


def with_specials(tokenizer: Tokenizer, names: list[str] | None = None) -> Tokenizer:
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in names or CHAT_TOKENS]
    )
    return tokenizer


def _byte_level(split: object, vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def _qwen_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def qwen_like(specials: list[str] | None = None, vocab_size: int = 420) -> Tokenizer:
    """Byte-level BPE where `.\\n\\n` is one token."""
    return with_specials(_byte_level(_qwen_pre_tokenizer(), vocab_size), specials)


def math_like() -> Tokenizer:
    """Merges by hand in the order of Qwen's: `$.` is a token, yet `$.\\n\\n` is `$` and `.\\n\\n`.

    Some tokens run past a blank line: three and four newlines, and `.` with four.
    """
    pairs = "Ċ+Ċ ĊĊ+Ċ ĊĊ+ĊĊ .+ĊĊ .+ĊĊĊĊ )+ĊĊ .+Ċ $+. }+$ )+. )+$. )+$ Ġ+$ w+e a+d ad+d Ġ+add"
    halves = [pair.partition("+") for pair in pairs.split()]
    merges = [(left, right) for left, _, right in halves]
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet()) + [left + right for left, right in merges]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = _qwen_pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return with_specials(tokenizer)


def id_of(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that is there."""
    found = tokenizer.token_to_id(token)
    assert found is not None, f"{token!r} is no token"
    return int(found)


def smollm_like() -> Tokenizer:
    """Byte-level BPE with single digits and single newlines: a blank line is always two tokens."""
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex("\n"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return with_specials(_byte_level(split, 400))


def llama_like() -> Tokenizer:
    """Sentencepiece style: `▁` for a space, one before every text, bytes for unknown letters."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(
        [line for text in corpus() for line in text.split("\n") if line],
        BpeTrainer(vocab_size=160, show_progress=False),
    )
    learned = json.loads(trained.to_str())["model"]
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[tuple(pair) for pair in learned["merges"]],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return with_specials(tokenizer, ["<unk>", "<s>", "</s>"])
