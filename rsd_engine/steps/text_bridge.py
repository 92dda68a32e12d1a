"""The PRM's tokens of a step by way of its text, for a PRM with another tokenizer.

It means the same as the device's tables, and serves as their oracle in tests, but is slower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer

from rsd_engine.steps.vocabulary import Vocabulary
from rsd_kernels.state.enums import Finish


class TextBridge:
    """Translates the generator's ids of a step into the PRM's.

    Args:
        vocabulary: of the model that writes.
        encoder: of the PRM, which reads all text as plain text (`plain_encoder`).
        separator_ids: PRM ids that follow each step.
        encode_step: the PRM's ids of a step by its text and whether it is the first, for PRMs that
            do not tokenise a step alone.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        encoder: Tokenizer,
        separator_ids: Sequence[int],
        encode_step: Callable[[str, bool], list[int]] | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self._encoder = encoder
        self._separator = list(separator_ids)
        self._encode_step = encode_step or self._alone

    def step_tokens(
        self,
        step_tokens: Sequence[int],
        delimiter_bytes: int,
        finish: Finish = Finish.NONE,
        is_first: bool = True,
    ) -> list[int]:
        """The PRM's ids of the step's text without its delimiter, then the separator.

        Special tokens are left out. Bytes that are not UTF-8, as in a character that the length
        limit cuts in two, become U+FFFD.

        Args:
            step_tokens: ids of the step, up to the end of its delimiter.
            delimiter_bytes: bytes of the delimiter that ended the step; 0 if it ended without one.
            finish: why the output ends with the step; a stop token that ends it has no text.
            is_first: no step is before it.
        """
        if finish == Finish.STOP_TOKEN and not delimiter_bytes:
            step_tokens = step_tokens[:-1]
        data = self._vocabulary.join(step_tokens)
        text = data[: len(data) - delimiter_bytes].decode("utf-8", errors="replace")
        return self._encode_step(text, is_first) + self._separator

    def _alone(self, text: str, is_first: bool) -> list[int]:
        del is_first
        return list(self._encoder.encode(text, add_special_tokens=False).ids)
