"""The end of a step as its text is tokenised: what the device cannot tell by tables.

It means the same as `rsd_kernels.retokenise`, and serves as its oracle in tests, but is slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from rsd_engine.steps.vocabulary import Vocabulary, plain_encoder

_TOKENS_BEFORE = 16  # of the step: enough for every word that its first character may change

Span = tuple[int, int]  # bytes


class StepEnds:
    """Tokenises the two ends of a kept step: where it begins, and where it ends.

    Only the words that hold a delimiter's last byte change. Elsewhere a step keeps the tokens it
    was written with, even if its text would have others. A newline at the end of a prompt, or of a
    step that ended without a delimiter, counts as one.

    Args:
        vocabulary: of the models that write.
        delimiters: every string that may end a step, of all requests.
    """

    def __init__(self, vocabulary: Vocabulary, delimiters: Sequence[str]) -> None:
        self._vocabulary = vocabulary
        self._encoder = plain_encoder(vocabulary.backend)
        self._ends = tuple(text.encode("utf-8") for text in ("\n", *delimiters))

    def end_tokens(self, context: Sequence[int], first: int) -> tuple[int, list[int]]:
        """What stands in place of the context's tokens from some token on.

        Args:
            context: prompt and kept steps.
            first: where the last step begins.

        Returns:
            (begin, the tokens from `begin` on). It is (len(context), []) if nothing changes.
        """
        begin = self._window(context, first)
        before = list(context[begin:])
        data = self._vocabulary.join(before)
        found = self._encode(data)
        if found is None or not data:
            return len(context), []
        after, words = found
        start = len(self._vocabulary.join(context[begin:first]))
        ends = [end for end in (start, len(data)) if data[:end].endswith(self._ends)]
        changing = [_word_at(words, end - 1) for end in ends]
        tokens = _merged((before, self._cuts(before)), (after, self._cuts(after)), changing)
        same = 0
        while same < min(len(before), len(tokens)) and before[same] == tokens[same]:
            same += 1
        return begin + same, tokens[same:]

    def _window(self, context: Sequence[int], first: int) -> int:
        """Where the text that is looked at begins: after any special token, with a character."""
        added = self._vocabulary.added_ids
        begin = max(0, first - _TOKENS_BEFORE)
        for i in range(begin, len(context)):
            if context[i] in added:
                begin = i + 1
        while begin < first and _is_rest(self._vocabulary.token_bytes[context[begin]]):
            begin += 1
        return begin

    def _encode(self, data: bytes) -> tuple[list[int], list[Span]] | None:
        """The tokens of a text and its words; None if no tokens have exactly these bytes."""
        try:
            encoding = self._encoder.encode(data.decode("utf-8"), add_special_tokens=False)
        except UnicodeDecodeError:
            return None
        if self._vocabulary.join(encoding.ids) == data:
            return encoding.ids, self._words(encoding.ids, encoding.word_ids)
        spelled = self._vocabulary.spell(data)
        if self._vocabulary.space_mark is None or spelled is None:
            return None
        # The tokenizer put a space before the text, which here is not the beginning of one.
        ids = [token.id for token in self._encoder.model.tokenize(spelled)]
        return (ids, []) if self._vocabulary.join(ids) == data else None

    def _words(self, ids: list[int], word_of: list[int | None]) -> list[Span]:
        spans: dict[int | None, Span] = {}
        for word, (start, end) in zip(word_of, pairwise(self._cuts(ids)), strict=True):
            spans[word] = (spans.get(word, (start, end))[0], end)
        return list(spans.values())

    def _cuts(self, ids: list[int]) -> list[int]:
        """Where tokens begin, and where the last one ends, in bytes."""
        sizes = (len(self._vocabulary.token_bytes[i]) for i in ids)
        return list(accumulate(sizes, initial=0))


def _is_rest(data: bytes) -> bool:
    """Whether these bytes begin inside a character."""
    return bool(data) and data[0] & 0xC0 == 0x80


def _word_at(words: Sequence[Span], byte: int) -> Span:
    """The word that has this byte; the byte alone where the tokenizer does not tell words apart."""
    return next((span for span in words if span[0] <= byte < span[1]), (byte, byte + 1))


def _merged(
    before: tuple[list[int], list[int]],
    after: tuple[list[int], list[int]],
    changing: Sequence[Span],
) -> list[int]:
    """The tokens of `before`, but for those of `after` where they differ in a changing word.

    Both are (tokens, cuts) over the same bytes.
    """
    common = sorted(set(before[1]) & set(after[1]))
    tokens: list[int] = []
    for start, end in pairwise(common):
        changes = any(start < last and first < end for first, last in changing)
        ids, cuts = after if changes else before
        tokens += ids[cuts.index(start) : cuts.index(end)]
    return tokens
