"""Runs a chat: what answers, where lines come from, and what Ctrl-C does."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields

from rsd_engine.cli.chat.backend import Backend
from rsd_engine.cli.chat.chat import Chat
from rsd_engine.cli.chat.lines import Lines, PipedLines, TypedLines
from rsd_engine.cli.chat.options import ChatOptions
from rsd_engine.cli.chat.settings import first_settings
from rsd_engine.cli.chat.view import ChatView
from rsd_engine.cli.config_file import Config, read_config
from rsd_engine.cli.engine_options import EngineOptions, engine_arguments, given, make_engine
from rsd_engine.cli.errors import FAILED, UsageError
from rsd_engine.cli.generate.settings import chat_settings
from rsd_engine.cli.show import is_plain, make_console
from rsd_engine.engine.chat.questions import ChatSettings

_CHAT = ("system", "chat_template", "chat_template_kwargs", "show_steps")
_NOT_OF_THE_ENGINE = ("config", "verbose")


def run_chat(options: ChatOptions) -> int:
    """Chats until the lines end; returns the exit code.

    Raises:
        UsageError: an option is not allowed, or the `client` extra is not installed.
        ConnectionError: the server cannot be reached.
    """
    config = read_config(options.config)
    form = config.generate | given(options, _CHAT)
    templates = chat_settings(form)
    settings = first_settings(config.sampling, options.set or [])
    out, notes = make_console(), make_console(stderr=True)
    view = ChatView(out, notes, show_steps=bool(form.get("show_steps")))
    by_hand = sys.stdin.isatty() and sys.stdout.isatty()
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        backend = _open(options, config, templates, runner, stack)
        try:
            backend.check(settings)
        except ValueError as error:
            raise UsageError(f"--set, or [sampling]: {error}") from None
        chat = Chat(backend, view, runner, settings, templates.system)
        _greet(view, backend, by_hand=by_hand)
        lines = TypedLines(view, colour=not is_plain(out)) if by_hand else PipedLines()
        with _interrupts_end_answers(by_hand=by_hand):
            _read(chat, lines, by_hand=by_hand)
    return FAILED if chat.errors and not by_hand else 0


def _read(chat: Chat, lines: Lines, *, by_hand: bool) -> None:
    """Passes lines to the chat until one of both ends."""
    while (line := lines.next()) is not None:
        try:
            if not chat.line(line):
                return
        except KeyboardInterrupt:
            if not by_hand:
                raise


def _greet(view: ChatView, backend: Backend, *, by_hand: bool) -> None:
    if by_hand:
        view.note(f"{backend.name}; /help lists commands, Ctrl-D ends the chat")
        if view.show_steps:
            view.legend()
    if backend.note:
        view.note(f"note: {backend.note}")


@contextmanager
def _interrupts_end_answers(*, by_hand: bool) -> Iterator[None]:
    """Lets asyncio take Ctrl-C while an answer is written; elsewhere it ends the command."""
    if not by_hand:
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _open(
    options: ChatOptions,
    config: Config,
    templates: ChatSettings,
    runner: asyncio.Runner,
    stack: ExitStack,
) -> Backend:
    """What answers; the stack closes it."""
    if options.url is not None:
        _refuse_models(options)
        server = runner.run(_connect(options.url, options.model, templates))
        stack.callback(lambda: runner.run(server.close()))
        return server
    if options.model is not None:
        raise UsageError("--model is the name of a server's model; give --url, or --target")
    from rsd_engine.cli.chat.engine_backend import EngineBackend

    arguments = engine_arguments(options, config)
    engine = stack.enter_context(make_engine(arguments, verbose=bool(options.verbose)))
    roles = [role for role in ("draft", "target", "prm") if role in arguments]
    name = ", ".join(f"{role} {arguments[role]}" for role in roles)
    return EngineBackend(engine, name, templates)


def _refuse_models(options: ChatOptions) -> None:
    names = [field.name for field in fields(EngineOptions)]
    for name in names:
        if getattr(options, name) and name not in _NOT_OF_THE_ENGINE:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} is for models that are loaded here; leave it or --url out")


async def _connect(url: str, model: str | None, templates: ChatSettings) -> Backend:
    try:
        from rsd_engine.cli.chat.server_backend import connect
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--url needs the package {error.name!r}; install rsd-engine[client]"
        ) from None
    return await connect(url, model, templates.options)
