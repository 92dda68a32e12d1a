"""Where a model on a server is, and how it is asked."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from rsd_engine.arguments import check_integer, check_number

KEY_VARIABLE = "RSD_REMOTE_API_KEY"
SERVERS = ("rsd", "vllm", "sglang")
_SCHEMES = ("http", "https")
_MOST_SECONDS = 86400.0
_IN_URL = ("tokenizer", "server", "timeout", "max_retries")


@dataclass(frozen=True)
class RemoteModel:
    """A target or a PRM on a server, in place of a checkpoint.

    >>> engine = Engine("models/draft", RemoteModel("http://gpu-7:8000/v1"), "models/prm")

    A URL in place of it may have a query with `tokenizer`, `server`, `timeout` and `max_retries`
    and the name as its fragment: `http://gpu-7:8000/v1?timeout=60#Qwen/Qwen2.5-72B-Instruct`.

    Args:
        url: of the server, with or without `/v1`.
        name: of the model there; by default the first that the server names.
        tokenizer: folder, hub id or GGUF file of the model's checkpoint, of which no weights are
            read. A target's is by default the draft's; a PRM's is needed, unless `rsd serve` has
            it.
        server: "rsd" (`rsd serve`), "vllm" or "sglang"; by default what it says it is.
        api_key: sent as a bearer token; by default that of the environment, `RSD_REMOTE_API_KEY`.
        timeout: seconds until one answer is given up.
        max_retries: how often a call is repeated that did not get through, or that the server
            could not serve for the moment.

    Raises:
        ValueError: an argument is not allowed.
    """

    url: str
    name: str | None = None
    tokenizer: str | Path | None = None
    server: str | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 300.0
    max_retries: int = 3

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            allowed = parts.scheme in _SCHEMES and parts.hostname and parts.port != 0
        except (ValueError, AttributeError, TypeError):
            allowed = False
        if not allowed or parts.query or parts.fragment or parts.username is not None:
            raise ValueError(
                f"url must be http://HOST:PORT or https://HOST:PORT, maybe with a path, got "
                f"{self.url!r}"
            )
        if self.server is not None and self.server not in SERVERS:
            raise ValueError(f"server must be one of {', '.join(SERVERS)}, got {self.server!r}")
        check_number("timeout", self.timeout, 0, _MOST_SECONDS, "in (0, 86400]", open_low=True)
        check_integer("max_retries", self.max_retries, 0, 100)

    @property
    def root(self) -> str:
        """The URL without `/v1` and a slash at its end."""
        return self.url.rstrip("/").removesuffix("/v1").rstrip("/")

    @property
    def key(self) -> str | None:
        """The key that is sent."""
        return self.api_key or os.environ.get(KEY_VARIABLE) or None

    def __str__(self) -> str:
        return f"{self.url}#{self.name}" if self.name else self.url


def parse_url(url: str) -> RemoteModel:
    """The model that a URL names; see `RemoteModel`.

    Raises:
        ValueError: it is not such a URL.
    """
    parts = urlsplit(url)
    found = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(set(found) - set(_IN_URL))
    if unknown:
        raise ValueError(f"{url}: its query may have {', '.join(_IN_URL)}, got {unknown[0]!r}")
    numbers = {"timeout": float, "max_retries": int}
    try:
        given = {name: numbers.get(name, str)(value) for name, value in found.items()}
    except ValueError:
        raise ValueError(f"{url}: timeout and max_retries must be numbers") from None
    bare = urlunsplit((*parts[:3], "", ""))
    return RemoteModel(bare, parts.fragment or None, **given)
