"""Ray Serve around the app of `rsd serve`: many replicas behind one address.

serve run rsd_engine.integrations.ray.serving:app_builder draft=... target=... prm=...
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve import Application

from rsd_engine.integrations.ray.arguments import ServeArguments
from rsd_engine.integrations.ray.replica import Replica

NAME = "rsd"
"""Of the deployment, where a config file changes its options."""


def app_builder(arguments: Mapping[str, Any]) -> Application:
    """The application, for `serve run`, `import_path` in a config file, and `serve.run`.

    Args:
        arguments: see `ServeArguments`; each may be text.

    Raises:
        ValueError: an argument is unknown or not allowed; nothing was started.
    """
    given = ServeArguments.read(arguments)
    server = given.server()
    as_deployment = serve.deployment(
        name=NAME,
        **_replicas(given),
        max_ongoing_requests=given.max_num_seqs + given.max_queue,
        graceful_shutdown_timeout_s=given.drain_seconds,
        ray_actor_options={"num_gpus": given.num_gpus, "num_cpus": given.num_cpus},
    )
    return as_deployment(serve.ingress()(Replica)).bind(given.engine(), server)


def _replicas(given: ServeArguments) -> dict[str, Any]:
    """How many there are: a number, or what decides it."""
    if given.most_replicas == given.min_replicas:
        return {"num_replicas": given.min_replicas}
    scaling = {
        "min_replicas": given.min_replicas,
        "max_replicas": given.most_replicas,
        "target_ongoing_requests": given.max_num_seqs,  # all slots run, and nobody waits
    }
    return {"autoscaling_config": scaling}
