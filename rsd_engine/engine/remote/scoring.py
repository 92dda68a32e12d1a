"""Has a server's PRM score steps, by one body a kind of server.

vLLM and SGLang get the PRM's context as token ids, made by the same code as for a PRM that is here.
`rsd serve` gets question and steps as text, for it has that code itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from rsd_engine.core.remote_steps import RemoteError, ScoredIds
from rsd_engine.engine.remote.client import RefusedError
from rsd_engine.engine.remote.server import RemoteServer
from rsd_engine.engine.remote.text_format import texts_of
from rsd_engine.models.reward.family import RewardFamily
from rsd_kernels.reward.heads import ClassesHead, EnsembleHead

# The first at which a server scores. vLLM's prefix cache serves /classify and not /pooling.
_PATHS = {"rsd": ("/v1/score",), "vllm": ("/classify", "/pooling"), "sglang": ("/classify",)}


@dataclass(frozen=True)
class RemoteScorer:
    """The PRM's side of one server.

    Attributes:
        server: that scores.
        family: of the PRM, which says what its numbers mean.
        path: that the server scores at.
    """

    server: RemoteServer
    family: RewardFamily
    path: str

    def score(self, context: Sequence[int]) -> Future[ScoredIds]:
        """Begins the call; see `RemoteRoles`."""
        length = len(context)

        def read(answer: Any) -> ScoredIds:
            try:
                return ScoredIds(self._reward(answer), length)
            except (KeyError, IndexError, TypeError, ValueError):
                raise RemoteError(f"it answered to {self.path} without a reward") from None

        return self.server.client.post(self.path, self._body(list(context)), read)

    def _body(self, ids: list[int]) -> dict[str, Any]:
        name = self.server.name
        if self.server.kind == "rsd":
            question, *steps = texts_of(ids)
            return {"model": name, "input": {"question": question, "steps": steps}}
        if self.server.kind == "sglang":
            return {"input_ids": ids}
        body = {"model": name, "input": ids, "use_activation": True, "add_special_tokens": False}
        if self.path == "/classify":
            return body
        return {**body, "task": "token_classify", "encoding_format": "float"}

    def _reward(self, answer: Any) -> float:
        if self.path == "/v1/score":
            reward = answer["data"][0]["rewards"][-1]
            return math.nan if reward is None else float(reward)
        low, high = self.family.reward_range
        if self.server.kind == "sglang":  # raw scores
            found = answer[0] if isinstance(answer, list) else answer
            share = _activated([float(value) for value in found["embedding"]])
        elif self.path == "/classify":
            share = float(answer["data"][0]["probs"][-1])
        else:
            row = answer["data"][0]["data"][-1]
            share = float(row[-1] if isinstance(row, list) else row)
        return low + (high - low) * share


def find_scorer(server: RemoteServer, family: RewardFamily, probe: Sequence[int]) -> RemoteScorer:
    """The scorer of a server, by the first path at which it scores `probe`, a step's context.

    Raises:
        ValueError: the server does not score, or the family's rewards are none that servers give.
    """
    url = server.client.model
    if server.kind != "rsd" and not _is_served(family, server.kind):
        raise ValueError(
            f"{server.kind} does not give the rewards of {family.name}; serve it with rsd "
            "serve, or load it here"
        )
    refused = ""
    for path in _PATHS[server.kind]:
        scorer = RemoteScorer(server, family, path)
        try:
            scorer.score(probe).result()
        except RefusedError as error:
            refused = str(error)
        except RemoteError as error:
            raise ValueError(f"{url}: {error}") from None
        else:
            return scorer
    raise ValueError(refused)


def _is_served(family: RewardFamily, kind: str) -> bool:
    """Whether a server gives its rewards: a value's or that of two classes.

    vLLM makes two classes of two rows of an LM head, if it is told to.
    """
    is_classified = family.head not in (EnsembleHead, ClassesHead)
    return is_classified and (kind == "vllm" or not family.reads_lm_head)


def _activated(scores: list[float]) -> float:
    """The share of one value (sigmoid), or of the last of several (softmax)."""
    if len(scores) == 1:
        return 1 / (1 + math.exp(-scores[0])) if scores[0] > -700 else 0.0
    most = max(scores)
    powers = [math.exp(score - most) for score in scores]
    return powers[-1] / sum(powers)
