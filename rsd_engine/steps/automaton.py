"""Byte automata that find delimiters and stop strings while tokens are sampled.

They work on bytes, so a string may end inside a token or span several, without text on the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rsd_kernels.state.enums import MOVE_SHIFT

ROOT = 0
_ALPHABET = 256


@dataclass(frozen=True)
class ByteAutomaton:
    """Aho-Corasick over byte strings as a dense table. State 0 is the root.

    A walk reads `state = next[state, byte]` and stops at the first state with `match > 0`: there a
    string of that many bytes ends. Where several end at one byte, `match` is the longest.
    """

    next: Tensor  # [states, 256] int16
    match: Tensor  # [states] int16: bytes of the string that ends here, 0 = none
    strings: tuple[str, ...] = ()  # that it finds

    @cached_property
    def moves(self) -> Tensor:
        """[states, 256] int16: next state and match in one word, as the device reads them.

        A match of more than 127 bytes counts as one of 127; those of delimiters have at most 63.
        """
        match = self.match.clamp(max=(1 << (15 - MOVE_SHIFT)) - 1)
        return self.next + (match[self.next.long()] << MOVE_SHIFT)

    def find(self, state: int, data: bytes) -> tuple[int, int, int]:
        """Walks over `data` from `state` up to the first match.

        Returns:
            (state, end, match): the state reached, the bytes read, and the length of the string
            that ends there; 0 if `data` was read to its end without a match.
        """
        following, matches = self.next.numpy(), self.match.numpy()
        for i, byte in enumerate(data):
            state = int(following[state, byte])
            match = int(matches[state])
            if match > 0:
                return state, i + 1, match
        return state, len(data), 0


def build_automaton(strings: Sequence[str], max_states: int, argument: str) -> ByteAutomaton:
    """The automaton of `strings` in UTF-8 (Aho and Corasick, "Efficient string matching", 1975).

    Args:
        strings: without any, the automaton has one state and never matches.
        max_states: the most states that fit into a slot.
        argument: the user's name for the strings (`stop`, `step_delimiters`), for error messages.

    Raises:
        ValueError: `strings` is not a list of non-empty strings, or needs more than `max_states`
            states.
    """
    patterns = _patterns(strings, argument)
    children, ends = _trie(patterns)
    if len(children) > max_states:
        raise ValueError(
            f"{argument} has {len(patterns)} strings of {sum(map(len, patterns))} bytes in all, "
            f"which need an automaton of {len(children)} states; at most {max_states} are allowed. "
            "Give fewer or shorter strings"
        )
    return _complete(children, ends, tuple(strings))


def _patterns(strings: Sequence[str], argument: str) -> list[bytes]:
    if isinstance(strings, str) or not isinstance(strings, Collection):
        raise ValueError(f"{argument} must be a list of strings, got {strings!r}")
    patterns = []
    for string in strings:
        if not isinstance(string, str):
            raise ValueError(f"{argument} must hold strings, got {string!r}")
        if not string:
            raise ValueError(f"{argument} must hold non-empty strings, got {list(strings)!r}")
        try:
            patterns.append(string.encode("utf-8"))
        except UnicodeEncodeError:
            raise ValueError(
                f"{argument} must be text that UTF-8 can encode, got half of a surrogate pair in "
                f"{string!r}"
            ) from None
    return patterns


def _trie(patterns: list[bytes]) -> tuple[list[dict[int, int]], list[int]]:
    """Children of every node, and the length of the pattern that ends in it (0 = none)."""
    children: list[dict[int, int]] = [{}]
    ends = [0]
    for pattern in patterns:
        node = ROOT
        for byte in pattern:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
                ends.append(0)
            node = children[node][byte]
        ends[node] = len(pattern)
    return children, ends


def _complete(
    children: list[dict[int, int]], ends: list[int], strings: tuple[str, ...]
) -> ByteAutomaton:
    """Fills in the missing moves, from the root outwards.

    A node without a child for a byte moves like the longest proper suffix of its text that is also
    a node; that node is nearer to the root and therefore complete. The same suffix gives the match
    of a node where no pattern ends.
    """
    table = [[ROOT] * _ALPHABET for _ in children]
    match = list(ends)
    suffix = [ROOT] * len(children)
    queue = deque([ROOT])
    while queue:
        node = queue.popleft()
        match[node] = match[node] or match[suffix[node]]
        moves = list(table[suffix[node]])  # of the root: all ROOT
        for byte, child in children[node].items():
            suffix[child] = moves[byte] if node != ROOT else ROOT
            moves[byte] = child
            queue.append(child)
        table[node] = moves
    return ByteAutomaton(
        next=torch.tensor(table, dtype=torch.int16),
        match=torch.tensor(match, dtype=torch.int16),
        strings=strings,
    )
