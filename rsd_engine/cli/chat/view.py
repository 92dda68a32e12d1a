"""How a chat looks: answers on stdout, everything about them on stderr."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from rsd_engine.cli.chat.backend import End, Piece
from rsd_engine.cli.show import StepView, is_plain, visible

_CUT_OFF = {
    "length": "cut off at the limit of max_tokens or the context",
    "steps": "cut off at the limit of max_steps",
}


class ChatView:
    """Shows the pieces of answers as they come.

    Args:
        out: where answers go.
        notes: where all else goes.
        show_steps: whether steps are shown with source and reward, rejected ones too.
    """

    def __init__(self, out: Console, notes: Console, *, show_steps: bool) -> None:
        self.show_steps = show_steps
        self._out = out
        self._notes = notes
        self._steps = StepView(out)
        self._open = False  # whether the last line of plain text has no end

    def legend(self) -> None:
        """Explains the colours of steps."""
        self._steps.legend()

    def piece(self, piece: Piece) -> None:
        """Shows a piece of an answer; text alone is that of kept ones."""
        if self.show_steps:
            self._steps.event(piece)
        elif piece.kind == "kept" and piece.text:
            self._out.print(Text(visible(piece.text)), end="", soft_wrap=True)
            self._open = not piece.text.endswith("\n")

    def end_of_text(self) -> None:
        """Ends the line of the answer."""
        self._steps.end()
        if self._open:
            self._out.print()
        self._open = False

    def facts(self, end: End, seconds: float) -> None:
        """What an answer took, in one line, and what is wrong with it."""
        self.note(facts(end, seconds))
        if end.finish_reason in _CUT_OFF:
            self.note(_CUT_OFF[end.finish_reason])

    def note(self, text: str) -> None:
        """A line about the chat."""
        self._line(text, "dim")

    def error(self, text: str) -> None:
        """A line about what went wrong."""
        self._line(f"error: {text}", "red")

    def _line(self, text: str, style: str) -> None:
        style = "" if is_plain(self._notes) else style
        self._notes.print(Text(visible(text), style=style), soft_wrap=True)


def facts(end: End, seconds: float) -> str:
    """Tokens, speed, verdicts on the draft's steps and its share, as far as they are known."""
    if end.tokens is None:
        return f"{seconds:.1f} s"
    parts = [f"{end.tokens} tokens in {seconds:.1f} s ({end.tokens / seconds:.0f}/s)"]
    scored = end.accepted + end.rejected
    if scored:
        parts.append(f"{end.accepted} of {scored} draft steps accepted")
    if scored and end.tokens:
        parts.append(f"{end.draft_tokens / end.tokens:.0%} by the draft")
    return ", ".join(parts)
