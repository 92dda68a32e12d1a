"""The text of an output that arrives in pieces; a piece is never taken back.

The text is the UTF-8 of the tokens' bytes, so the pieces add up to the whole, and the text agrees
with the byte automata that find delimiters and stop strings.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from rsd_engine.steps.vocabulary import Vocabulary


class Detokenizer:
    """Turns the ids of one output into text as they come.

    The text continues the prompt: the space that sentencepiece puts before a first word stays.
    Bytes that are not UTF-8 become U+FFFD; a character split between two tokens comes with the
    second one. Text that may be the beginning of a stop string is held back.

    Ids of a model with another vocabulary come with that; `None` is the output's own.

    Args:
        vocabulary: of the model that writes (draft and target mostly share it).
        skip_special_tokens: leave special tokens out of the text.
        stop: the request's stop strings.
        include_stop: leave the stop string in the text when the output ends with one.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        skip_special_tokens: bool = True,
        stop: Sequence[str] = (),
        include_stop: bool = False,
    ) -> None:
        self._vocabulary = vocabulary
        self._skip_special = skip_special_tokens
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.num_decoded = 0  # characters of all ids so far, those held back included

    def push(self, ids: Iterable[int], vocabulary: Vocabulary | None = None) -> str:
        """The text that `ids` add, but for what must wait for the next ids."""
        text = self._held + self._decode(self._bytes(ids, vocabulary))
        keep = _possible_stop(text, self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(
        self,
        ids: Sequence[int] = (),
        stopped: bool = False,
        vocabulary: Vocabulary | None = None,
    ) -> str:
        """What was held back, and the text that the last `ids` add.

        Args:
            ids: the rest of the output.
            stopped: a stop string ended the output, inside or at the end of the last token; the
                text is cut there. A stop string before that (before `min_tokens`) stays.
            vocabulary: of these ids.
        """
        text = self._held + self._decode(self._bytes(ids[:-1], vocabulary))
        before = len(text)
        text += self._decode(self._bytes(ids[-1:], vocabulary), final=True)
        self._held = ""
        if not stopped:
            return text
        return cut_at_stop(text, self._stop, self._include_stop, before)[0]

    def text_if_last(self, ids: Iterable[int], vocabulary: Vocabulary | None = None) -> str:
        """The text that `ids` would add here if nothing followed them; nothing changes."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.setstate(self._decoder.getstate())
        return decoder.decode(self._bytes(ids, vocabulary), final=True)

    def _decode(self, data: bytes, final: bool = False) -> str:
        text = self._decoder.decode(data, final=final)
        self.num_decoded += len(text)
        return text

    def _bytes(self, ids: Iterable[int], vocabulary: Vocabulary | None) -> bytes:
        tokens = vocabulary or self._vocabulary
        if self._skip_special:
            return tokens.join(ids)
        special, token_bytes = tokens.special_text, tokens.token_bytes
        return b"".join(special[i].encode() if i in special else token_bytes[i] for i in ids)


def cut_at_stop(
    text: str, stop: Sequence[str], include: bool = False, after: int = 0
) -> tuple[str, str | None]:
    """Cuts `text` at the stop string that is complete first; of several, the longest.

    Args:
        text: output text.
        stop: the stop strings, none empty.
        include: leave the stop string in the text.
        after: only strings that end after this many characters count.

    Returns:
        (text up to the stop string, the stop string), or (`text`, None) if there is none.
    """
    found = []
    for string in stop:
        start = text.find(string, max(0, after + 1 - len(string)))
        if start >= 0:
            found.append((start + len(string), -len(string), string))
    if not found:
        return text, None
    end, _, string = min(found)
    return text[: end if include else end - len(string)], string


def _possible_stop(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins, but does not complete, a stop string."""
    longest = 0
    for string in stop:
        for k in range(min(len(string) - 1, len(text)), longest, -1):
            if text.endswith(string[:k]):
                longest = k
                break
    return longest
