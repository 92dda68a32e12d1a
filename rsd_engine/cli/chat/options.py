"""The options of `rsd chat`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from rsd_engine.cli import options as o
from rsd_engine.cli.engine_options import EngineOptions


def _option(help: str, *names: str, **more: Any) -> Any:
    return o.option("Chat", help, *names, **more)


@dataclass(frozen=True)
class ChatOptions(EngineOptions):
    """Those of the engine, or where the server is, and how the chat begins."""

    url: Annotated[
        str | None,
        _option(
            "Talk to the server at this address in place of an engine, such as "
            "http://127.0.0.1:8000/v1. OPENAI_API_KEY may have its key.",
            "--url",
        ),
    ] = None
    model: Annotated[
        str | None,
        _option("What the server calls the model (default: its first one)", "--model"),
    ] = None
    system: o.System = None
    chat_template: o.ChatTemplate = None
    chat_template_kwargs: o.ChatTemplateKwargs = None
    show_steps: o.ShowSteps = None
    set: Annotated[
        list[str] | None,
        _option("As /set does, such as temperature=0.7; may be repeated.", "--set"),
    ] = None
