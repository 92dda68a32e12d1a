"""How each family of process reward models wants to read: the prompt and what ends a step.

A PRM has its own prompt and its own separator; neither is the generator's. The score of a step is
read at the last separator token. Formats follow the models' own code and cards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from rsd_engine.steps.vocabulary import backend_of, plain_encoder

_QWEN_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class PrmFormat:
    """A PRM's prompt around the bare question, and the ids after every step.

    The question is plain text: a special token written out in it is read as its letters.
    """

    before: tuple[int, ...]  # ids before the segment that holds the question
    prefix: str  # text tokenised together with the question, before it
    suffix: str  # and after it
    after: tuple[int, ...]  # ids after that segment
    separator_ids: tuple[int, ...]  # follow each step; the score stands at the last one
    encoder: Tokenizer = field(repr=False, compare=False)

    def prompt_ids(self, question: str) -> list[int]:
        """The PRM's row before the first step."""
        text = self.prefix + question + self.suffix
        return [*self.before, *_encode(self.encoder, text), *self.after]


def prm_format(architecture: str, tokenizer: Any) -> PrmFormat:
    """The format of a PRM family, with the ids of its tokenizer.

    Args:
        architecture: `config.architectures[0]` of the checkpoint.
        tokenizer: the PRM's fast tokenizer.

    Raises:
        ValueError: the architecture is not built in, or the tokenizer lacks a token of the format.
    """
    if architecture not in _FORMATS:
        raise ValueError(
            f"prm architecture = {architecture!r}: not supported; built in are "
            + ", ".join(sorted(_FORMATS))
        )
    return _FORMATS[architecture](tokenizer)


def _skywork(tokenizer: Any) -> PrmFormat:
    """Skywork-o1-Open-PRM as the RSD authors feed it: bos, question, newline; no chat template.

    Question and newline are one text, for the newline often merges with the question's last token.
    """
    encoder = plain_encoder(tokenizer)
    bos = getattr(tokenizer, "bos_token", None) or "<|im_start|>"
    return PrmFormat(
        before=(_token_id(tokenizer, str(bos)),),
        prefix="",
        suffix="\n",
        after=(),
        separator_ids=(_encode(encoder, "\n\n")[-1],),
        encoder=encoder,
    )


def _qwen_math_prm(tokenizer: Any) -> PrmFormat:
    """Qwen2.5-Math-PRM: ChatML with the Qwen2.5-Math system text, `<extra_0>` after every step."""
    encoder = plain_encoder(tokenizer)
    start, end = (_token_id(tokenizer, token) for token in ("<|im_start|>", "<|im_end|>"))
    newline = _encode(encoder, "\n")
    system = _encode(encoder, f"system\n{_QWEN_SYSTEM}")
    assistant = _encode(encoder, "assistant\n")
    return PrmFormat(
        before=(start, *system, end, *newline, start),
        prefix="user\n",
        suffix="",
        after=(end, *newline, start, *assistant),
        separator_ids=(_token_id(tokenizer, "<extra_0>"),),
        encoder=encoder,
    )


_FORMATS: dict[str, Callable[[Any], PrmFormat]] = {
    "Qwen2ForPrmModel": _skywork,
    "Qwen2ForProcessRewardModel": _qwen_math_prm,
}


def _token_id(tokenizer: Any, token: str) -> int:
    token_id = backend_of(tokenizer).token_to_id(token)
    if token_id is None:
        raise ValueError(f"prm tokenizer: has no token {token!r}, which this PRM's format needs")
    return token_id


def _encode(encoder: Tokenizer, text: str) -> list[int]:
    return encoder.encode(text, add_special_tokens=False).ids
