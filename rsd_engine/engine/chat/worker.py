"""The process in which chat templates run: one JSON request a line in, one reply a line out.

A template is a program that came with a checkpoint, and Python cannot stop a program inside its own
process: one product of a string and a number may take all memory in a single instruction. This file
imports nothing of the package, so that the process starts in half a second and stays small.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase


def main(cpu_seconds: float, memory_bytes: int, max_characters: int) -> None:
    """Answers requests until stdin ends; one that takes longer ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the engine
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, even inside one instruction
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no reply
    _limit_memory(memory_bytes)
    tokenizer = PreTrainedTokenizerBase()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        try:
            text = _render(tokenizer, **request)
            _check_size(text, max_characters)
            reply = {"text": text}
        except MemoryError:
            reply = {"error": f"it needs more than {memory_bytes >> 20} MiB of memory"}
        except Exception as error:  # whatever a template does wrong
            reply = {"error": _one_line(error)}
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], options: dict[str, Any]
) -> str:
    """The text of a conversation; content in parts is joined for templates that expect text."""

    def rendered(conversation: list[dict[str, Any]]) -> str:
        return str(tokenizer.apply_chat_template(conversation, tokenize=False, **options))

    in_parts = [m["content"] for m in messages if isinstance(m.get("content"), list)]
    if in_parts:
        try:
            text = rendered(messages)
        except Exception:  # the template cannot read parts, or fails below once more
            text = ""
        if all(_shows(text, parts) for parts in in_parts):
            return text
    return rendered([_joined(message) for message in messages])


def _shows(text: str, parts: list[dict[str, str]]) -> bool:
    """Whether the text has all parts, and not merely as the source of a list."""
    as_source = str(parts) in text or json.dumps(parts, ensure_ascii=False) in text
    return not as_source and all(part["text"].strip() in text for part in parts)


def _joined(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": "\n".join(part["text"] for part in content)}


def _check_size(text: str, max_characters: int) -> None:
    if len(text) > max_characters:
        raise ValueError(f"it wrote {len(text)} characters; at most {max_characters} are allowed")


def _one_line(error: Exception) -> str:
    said = " ".join(str(error).split())
    said = said if len(said) <= 300 else f"{said[:300]}..."
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _limit_memory(more: int) -> None:
    """Allows `more` bytes beyond what the process has now, where the system can say what it has."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
    except OSError:
        return
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
