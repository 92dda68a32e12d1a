"""Starts the engine and the server around it."""

from __future__ import annotations

import logging
from pathlib import Path

from rsd_engine.cli import values
from rsd_engine.cli.config_file import read_config
from rsd_engine.cli.engine_options import engine_arguments, make_engine
from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.serve.options import ServeOptions


def run_server(options: ServeOptions) -> None:
    """Serves until a signal asks it to stop.

    Raises:
        UsageError: an option is not allowed, or the `server` extra is not installed.
    """
    arguments = engine_arguments(options, read_config(options.config))
    keys = _keys_of(options.api_key_file)
    try:
        from rsd_engine.server.app import make_app
        from rsd_engine.server.async_engine import AsyncEngine
        from rsd_engine.server.auth import environment_keys
        from rsd_engine.server.run import Server
        from rsd_engine.server.service import ServerOptions, Service
    except ModuleNotFoundError as error:
        raise UsageError(
            f"rsd serve needs the package {error.name!r}; install rsd-engine[server]"
        ) from None
    name = str(arguments.get("target") or arguments["draft"])
    server_options = ServerOptions(
        model_names=tuple(options.served_model_name or [name]),
        api_keys=(*environment_keys(), *keys),
        max_body_bytes=options.max_body_bytes,
        max_queue=options.max_queue,
        max_prompts=options.max_prompts,
        max_samples=options.max_samples,
        trust_chat_templates=options.trust_chat_templates,
        drain_seconds=options.drain_seconds,
        vllm_metrics=options.vllm_metrics,
    )
    with make_engine(arguments, verbose=bool(options.verbose)) as engine:
        logging.getLogger("rsd_engine.server").setLevel(logging.INFO)
        async_engine = AsyncEngine(engine)
        try:
            service = Service(async_engine, server_options)
            Server(make_app(service), service, host=options.host, port=options.port).run()
        finally:
            async_engine.close()


def _keys_of(file: Path | None) -> list[str]:
    """The keys in a file, one a line.

    Raises:
        UsageError: the file cannot be read, or has no key.
    """
    if file is None:
        return []
    keys = [line.strip() for line in values.text_file("--api-key-file", file).splitlines()]
    if not any(keys):
        raise UsageError(f"--api-key-file {file} has no key; give one a line")
    return [key for key in keys if key]
