"""The PRM's tokens of a step by way of its text, for tokenizers that differ.

Slower than the device's tables, with the same meaning: it is also their test oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rsd_engine.steps.vocabulary import plain_encoder, read_vocabulary
from rsd_kernels.state.enums import Finish


class TextBridge:
    """From the generator's ids of a step to the PRM's ids of the same step.

    Args:
        tokenizer: fast tokenizer of the model that writes.
        prm_tokenizer: fast tokenizer of the PRM.
        separator_ids: PRM ids that follow each step.

    Raises:
        ValueError: as `read_vocabulary`.
    """

    def __init__(self, tokenizer: Any, prm_tokenizer: Any, separator_ids: Sequence[int]) -> None:
        self._vocabulary = read_vocabulary(tokenizer)
        self._encoder = plain_encoder(prm_tokenizer)
        self._separator = list(separator_ids)

    def step_tokens(
        self, step_tokens: Sequence[int], delimiter_bytes: int, finish: Finish = Finish.NONE
    ) -> list[int]:
        """The PRM's ids of the step's text without its delimiter, then the separator.

        Args:
            step_tokens: ids of the step; a last token that ran past the delimiter is replaced
                already. Special tokens are left out.
            delimiter_bytes: bytes of the delimiter that ended the step, 0 if it ended without one.
            finish: why the output ends with the step; a stop token that ends it has no text.

        Bytes that are not UTF-8 (a character cut in two by a length limit) become U+FFFD.
        """
        if finish == Finish.STOP_TOKEN and not delimiter_bytes:
            step_tokens = step_tokens[:-1]
        data = self._vocabulary.join(step_tokens)
        text = data[: len(data) - delimiter_bytes].decode("utf-8", errors="replace")
        return self._encoder.encode(text, add_special_tokens=False).ids + self._separator
