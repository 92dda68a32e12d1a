"""What a Ray Serve application is built from: the arguments of `serve run`, or `args` in YAML."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rsd_engine.engine.engine import Engine
from rsd_engine.server.auth import environment_keys
from rsd_engine.server.service import ServerOptions
from rsd_engine.steps.policies import parse_policy
from rsd_engine.steps.scorers import parse_scorer

_Count = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(ge=0)]
_PARSERS = {"policy": parse_policy, "scorer": parse_scorer}
_ENGINE = frozenset(inspect.signature(Engine).parameters)
_SERVER = frozenset(field.name for field in fields(ServerOptions))


class ServeArguments(BaseModel):
    """Arguments of `Engine` and of the server by their names, and how many replicas there are.

    Attributes:
        policy: as on the command line, such as "threshold:0.7"; so is `scorer`.
        served_model_name: what requests call the model; by default the target as it is given.
        drain_seconds: that the requests of a replica may take when it is to end.
        num_gpus: of a replica. On CPUs 0, with `num_cpus`, which is also its number of threads.
        min_replicas: that always run.
        max_replicas: that run when many requests wait; by default as many as `min_replicas`.
    """

    model_config = ConfigDict(extra="forbid")

    draft: str | None = None
    target: str | None = None
    prm: str | None = None
    policy: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    max_num_seqs: _Count = 16
    max_model_len: int | None = None
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    step_delimiters: str | list[str] | None = "auto"
    step_ends: str = "text"
    revision: str | None = None
    hf_overrides: dict[str, dict[str, Any]] | None = None
    quantization: str | dict[str, str] | None = None
    executor: str = "auto"
    max_guesses: Annotated[int, Field(ge=0)] = 0
    enable_prefix_caching: bool = True
    prm_format: str | dict[str, Any] | None = None
    prm_separator: str | None = None
    scorer: str | None = None

    served_model_name: str | list[str] | None = None
    max_body_bytes: _Count = 4 << 20
    max_queue: Annotated[int, Field(ge=0)] = 256
    max_prompts: _Count = 256
    max_samples: _Count = 64
    trust_chat_templates: bool = False
    keep_alive_seconds: Annotated[float, Field(gt=0)] = 10.0
    drain_seconds: _Share = 30.0
    vllm_metrics: bool = False

    num_gpus: _Share = 1.0
    num_cpus: _Share = 1.0
    min_replicas: _Count = 1
    max_replicas: _Count | None = None

    @classmethod
    def read(cls, arguments: Mapping[str, Any]) -> ServeArguments:
        """Checks arguments, which may all be text.

        Raises:
            ValueError: one is unknown or not allowed, or no model is given.
        """
        try:
            found = cls.model_validate(arguments)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise ValueError(f"{name}: {first['msg']}, got {first['input']!r}") from None
        if not (found.draft or found.target):
            raise ValueError("no model is given; give draft, target and prm, or a writer alone")
        if found.most_replicas < found.min_replicas:
            raise ValueError(
                f"max_replicas must be at least min_replicas={found.min_replicas}, got "
                f"{found.max_replicas}"
            )
        return found

    @property
    def most_replicas(self) -> int:
        return self.min_replicas if self.max_replicas is None else self.max_replicas

    def engine(self) -> dict[str, Any]:
        """The arguments of `Engine` that are given.

        Raises:
            ValueError: the policy or the scorer is none.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set & _ENGINE}
        for name, parse in _PARSERS.items():
            if given.get(name) is not None:
                given[name] = parse(given[name])
        return given

    def server(self) -> ServerOptions:
        """How the server of a replica behaves; keys are those of the environment it is built in."""
        names = self.served_model_name or self.target or self.draft or ""
        return ServerOptions(
            model_names=(names,) if isinstance(names, str) else tuple(names),
            api_keys=tuple(environment_keys()),
            **{name: getattr(self, name) for name in self.model_fields_set & _SERVER},
        )
