"""The options of `rsd serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rsd_engine.cli import options as o
from rsd_engine.cli.engine_options import EngineOptions


def _option(help: str, *names: str, **more: Any) -> Any:
    return o.option("Server", help, *names, **more)


@dataclass(frozen=True)
class ServeOptions(EngineOptions):
    """Those of the engine, and how the server behaves."""

    host: Annotated[str, _option("Address to listen at.", "--host")] = "127.0.0.1"
    port: Annotated[int, _option("Port; 0 takes a free one.", "--port", min=0, max=65535)] = 8000
    served_model_name: Annotated[
        list[str] | None,
        _option(
            "What requests call the model; may be repeated (default: the target as it is given)",
            "--served-model-name",
        ),
    ] = None
    api_key_file: Annotated[
        Path | None,
        _option(
            "File of keys, one a line: a request must bring one of them. RSD_API_KEYS may have "
            "more, separated by commas (default: no key is needed)",
            "--api-key-file",
        ),
    ] = None
    max_queue: Annotated[
        int, _option("Samples that may wait; more are refused with 503.", "--max-queue", min=0)
    ] = 256
    max_body_bytes: Annotated[
        int, _option("Largest body of a request.", "--max-body-bytes", min=1)
    ] = 4 << 20
    max_prompts: Annotated[int, _option("Most prompts of a request.", "--max-prompts", min=1)] = 256
    max_samples: Annotated[int, _option("Largest n of a request.", "--max-samples", min=1)] = 64
    drain_seconds: Annotated[
        float, _option("Time for running requests to end, at a signal.", "--drain-seconds", min=0)
    ] = 30.0
    trust_chat_templates: Annotated[
        bool, _option("Let requests bring chat templates.", "--trust-chat-templates")
    ] = False
    vllm_metrics: Annotated[
        bool, _option("Give metrics that vLLM has its names, too.", "--vllm-metrics")
    ] = False
