"""Changes to a text that must not miss."""

from __future__ import annotations


def replace_once(text: str, old: str, new: str) -> str:
    """The text with `old` replaced.

    Raises:
        LookupError: `old` does not stand in the text exactly once. A test that changes the source
            of a kernel would otherwise check the kernel as it is. It is no AssertionError, which
            such tests expect.
    """
    if (count := text.count(old)) != 1:
        raise LookupError(
            f"{old!r} is {count} times in the text; it must be there exactly once: the text has "
            "changed, so change what this test looks for"
        )
    return text.replace(old, new)
