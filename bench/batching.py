"""`python -m bench.batching` runs `bench.loop.batching`."""

from bench.loop.batching import main

if __name__ == "__main__":
    raise SystemExit(main())
