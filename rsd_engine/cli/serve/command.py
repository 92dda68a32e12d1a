"""The options of `rsd serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rsd_engine.cli import options as o
from rsd_engine.cli.errors import clean_errors

HELP = (
    "Serve the models by OpenAI's protocol.\n\n"
    "Completions and chats, streamed or whole, with everything that a request of the engine may "
    "say; metrics for Prometheus. Needs the `server` extra. Ctrl-C lets running requests end; a "
    "second one does not wait."
)
_SERVER = "Server"


def _option(help: str, *names: str, **more: Any) -> Any:
    return o.option(_SERVER, help, *names, **more)


def serve(
    draft: o.Draft = None,
    target: o.Target = None,
    prm: o.Prm = None,
    revision: o.Revision = None,
    hf_overrides: o.HfOverrides = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    max_num_seqs: o.MaxNumSeqs = None,
    max_model_len: o.MaxModelLen = None,
    kv_cache_memory: o.KvCacheMemory = None,
    gpu_memory_utilization: o.GpuMemoryUtilization = None,
    executor: o.Executor = None,
    policy: o.PolicyOption = None,
    step_delimiter: o.StepDelimiter = None,
    no_steps: o.NoSteps = False,
    config: o.ConfigFile = None,
    verbose: o.Verbose = None,
    host: Annotated[str, _option("Address to listen at.", "--host")] = "127.0.0.1",
    port: Annotated[int, _option("Port; 0 takes a free one.", "--port", min=0, max=65535)] = 8000,
    served_model_name: Annotated[
        list[str] | None,
        _option(
            "What requests call the model; may be repeated (default: the target's path)",
            "--served-model-name",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        _option(
            "File of keys, one a line, of which a request must bring one; RSD_API_KEYS has them "
            "separated by commas (default: none is needed)",
            "--api-key-file",
        ),
    ] = None,
    max_queue: Annotated[
        int, _option("Samples that may wait; more are refused with 503.", "--max-queue", min=0)
    ] = 256,
    max_body_bytes: Annotated[
        int, _option("Largest body of a request.", "--max-body-bytes", min=1)
    ] = 4 << 20,
    max_prompts: Annotated[
        int, _option("Most prompts of a request.", "--max-prompts", min=1)
    ] = 256,
    max_samples: Annotated[int, _option("Largest n of a request.", "--max-samples", min=1)] = 64,
    drain_seconds: Annotated[
        float,
        _option("Time that running requests get to end at Ctrl-C.", "--drain-seconds", min=0),
    ] = 30.0,
    trust_chat_templates: Annotated[
        bool, _option("Let requests bring chat templates.", "--trust-chat-templates")
    ] = False,
    vllm_metrics: Annotated[
        bool, _option("Give metrics that vLLM has its names, too.", "--vllm-metrics")
    ] = False,
) -> None:
    """See HELP."""
    given = dict(locals())
    with clean_errors():
        from rsd_engine.cli.serve.run import run_server

        run_server(given)
