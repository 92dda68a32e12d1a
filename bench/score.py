"""`python -m bench.score` runs `bench.loop.score`."""

from bench.loop.score import main

if __name__ == "__main__":
    raise SystemExit(main())
