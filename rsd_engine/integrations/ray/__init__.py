"""Many engines by way of Ray: batches by Ray Data in `data`, a server by Ray Serve in `serving`."""

try:
    import ray  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"rsd_engine.integrations.ray needs the package {error.name!r}; install it with "
        '`pip install "rsd-engine[ray]"`',
        name=error.name,
    ) from None
