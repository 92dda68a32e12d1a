"""Asks one server, in a thread of its own, so that nobody waits who does not want to."""

from __future__ import annotations

import asyncio
import json
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from rsd_engine.arguments import shown
from rsd_engine.core.remote_steps import RemoteError
from rsd_engine.engine.remote.model import KEY_VARIABLE, RemoteModel

T = TypeVar("T")

_MOST_SHOWN = 300  # characters of a server's own message


class RemoteClient:
    """Connections to the server of one model; a call that is cancelled hangs up.

    Retries, with their waits and the server's `Retry-After`, are those of the `openai` package.

    Raises:
        ImportError: that is not installed.
    """

    def __init__(self, model: RemoteModel) -> None:
        try:
            import openai
        except ImportError:
            raise ImportError(
                f"the model at {model.url} needs the package 'openai'; "
                'pip install "rsd-engine[client]"'
            ) from None
        self.model = model
        self._openai = openai
        self._client = openai.AsyncOpenAI(
            base_url=model.root,
            api_key=model.key or "none",
            timeout=model.timeout,
            max_retries=model.max_retries,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="rsd-remote", daemon=True
        )
        self._thread.start()
        self._stop = weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    def get(self, path: str, read: Callable[[Any], T]) -> Future[T]:
        """Begins a GET; as `post`."""
        return self._start(self._client.get(path, cast_to=str), path, read)

    def post(self, path: str, body: object, read: Callable[[Any], T]) -> Future[T]:
        """Begins a POST.

        Args:
            path: below the server's root.
            body: goes as JSON.
            read: makes the result of the answer's JSON, or of its text if it is none.

        Returns:
            A future that may be cancelled. It raises what `read` does, and RemoteError, in one
            line, if there is no answer or an error.
        """
        return self._start(self._client.post(path, cast_to=str, body=body), path, read)

    def close(self) -> None:
        """Ends the calls that run, and the thread."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result()
        self._stop()
        self._thread.join()
        self._loop.close()

    async def _hang_up(self) -> None:
        calls = asyncio.all_tasks(self._loop) - {asyncio.current_task(self._loop)}
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._client.close()

    def _start(
        self, call: Coroutine[Any, Any, str], path: str, read: Callable[[Any], T]
    ) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(self._answer(call, path, read), self._loop)

    async def _answer(
        self, call: Coroutine[Any, Any, str], path: str, read: Callable[[Any], T]
    ) -> T:
        errors, model = self._openai, self.model
        try:
            answer: Any = await call
        except errors.APITimeoutError:
            raise RemoteError(f"{model.url} did not answer in {model.timeout:g} seconds") from None
        except errors.APIConnectionError as error:
            why = " ".join(str(error.__cause__ or error).split())
            raise RemoteError(f"{model.url} cannot be reached: {why}") from None
        except errors.APIStatusError as error:
            raise RefusedError(model, path, error.status_code, _message(error)) from None
        with suppress(ValueError):
            answer = json.loads(answer)
        return read(answer)


def dict_of(answer: Any) -> Mapping[str, Any]:
    """The answer, if it is a JSON object.

    Raises:
        RemoteError: it is none.
    """
    if not isinstance(answer, dict):
        raise RemoteError(f"it answered with {shown(answer)}, and not with a JSON object")
    return answer


class RefusedError(RemoteError):
    """The server answered with an error."""

    def __init__(self, model: RemoteModel, path: str, status: int, said: str) -> None:
        advice = ""
        if status in (401, 403):
            given = "refused the key that was given" if model.key else "needs a key"
            advice = f"; it {given}: set {KEY_VARIABLE}"
        super().__init__(f"{model.url} answered {status} to {path}: {said}{advice}")


def _message(error: Any) -> str:
    """What an error's body says: OpenAI's shape, SGLang's flat one, or any text."""
    body = error.body
    if isinstance(body, dict):
        inner = body.get("error", body)
        body = inner.get("message", inner) if isinstance(inner, dict) else inner
    said = " ".join(str(body if body is not None else error.response.text).split())
    return said[:_MOST_SHOWN] or "no message"
