"""`python -m bench.startup` runs `bench.loop.startup`."""

from bench.loop.startup import main

if __name__ == "__main__":
    raise SystemExit(main())
