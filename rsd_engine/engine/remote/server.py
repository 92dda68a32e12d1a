"""What a server is and what it serves, before anything is loaded here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rsd_engine.core.remote_steps import RemoteError
from rsd_engine.engine.remote.client import RefusedError, RemoteClient, dict_of
from rsd_engine.engine.remote.model import SERVERS

_OWNERS = {"rsd-engine": "rsd", "vllm": "vllm", "sglang": "sglang"}  # in /v1/models
_PROBE = "The 2 cats' naïve plan:\n\n  x² + 3·4 = 15;\t你好 🙂\nprint('a_b')  # 1.50 %\n\n"


@dataclass(frozen=True)
class RemoteServer:
    """A server that answers.

    Attributes:
        client: asks it.
        kind: one of `SERVERS`.
        name: of the model.
        max_len: tokens that its context holds; None if the server does not say.
    """

    client: RemoteClient
    kind: str
    name: str
    max_len: int | None

    def tokenize(self, text: str) -> list[int] | None:
        """The server's ids of a text; None if it does not tell.

        Raises:
            ValueError: it did not answer.
        """
        body = {"model": self.name, "prompt": text, "add_special_tokens": False}
        try:
            found = self.client.post("/tokenize", body, dict_of).result()
        except RefusedError:
            return None
        except RemoteError as error:
            raise ValueError(str(error)) from None
        tokens = found.get("tokens")
        return tokens if isinstance(tokens, list) else None

    def check_tokenizer(self, tokenizer: Any) -> bool:
        """Whether the server could tell that its tokenizer is this one.

        Raises:
            ValueError: it is another one.
        """
        theirs = self.tokenize(_PROBE)
        if theirs is None:
            return False
        ours = list(tokenizer.encode(_PROBE, add_special_tokens=False))
        if theirs != ours:
            at = next(
                (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                min(len(ours), len(theirs)),
            )
            raise ValueError(
                f"the model at {self.client.model} has another tokenizer: of a test text, token "
                f"{at} is {theirs[at : at + 1]} there and {ours[at : at + 1]} here; name its "
                "checkpoint with tokenizer=, or take a model of the draft's vocabulary"
            )
        return True


def find_server(client: RemoteClient) -> RemoteServer:
    """Asks a server what it is.

    Raises:
        ValueError: it cannot be reached, needs a key, or does not have the model; one line.
    """
    model = client.model
    try:
        listed = client.get("/v1/models", dict_of).result()
    except RemoteError as error:
        raise ValueError(str(error)) from None
    entries = listed.get("data")
    if not isinstance(entries, list) or not all(isinstance(e, Mapping) for e in entries):
        raise ValueError(f"{model.url} has no /v1/models as OpenAI's servers have; is it one?")
    by_name = {str(entry.get("id")): entry for entry in entries}
    if not by_name or (model.name is not None and model.name not in by_name):
        raise ValueError(
            f"{model.url} does not serve {model.name or 'any model'}; it has {sorted(by_name)}"
        )
    name = model.name or next(iter(by_name))
    kind = model.server or _OWNERS.get(str(by_name[name].get("owned_by")))
    if kind is None:
        raise ValueError(
            f"{model.url} does not tell what it is; name it with server=, one of "
            f"{', '.join(SERVERS)}"
        )
    max_len = by_name[name].get("max_model_len")
    return RemoteServer(client, kind, name, max_len if isinstance(max_len, int) else None)
