"""Shows the engine's log on stderr, unless the application has set up logging itself."""

from __future__ import annotations

import logging


class _UnlessConfigured(logging.StreamHandler):
    """Silent as soon as the root logger has a handler, which then shows the record."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            super().emit(record)


def show_on_stderr() -> None:
    """Shows INFO messages of the logger `rsd_engine` by default. A second call changes nothing."""
    logger = logging.getLogger("rsd_engine")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _UnlessConfigured) for handler in logger.handlers):
        handler = _UnlessConfigured()
        handler.setFormatter(logging.Formatter("rsd: %(message)s"))
        logger.addHandler(handler)
