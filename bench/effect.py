"""`python -m bench.effect` runs `bench.compare.effect`."""

from bench.compare.effect import main

if __name__ == "__main__":
    raise SystemExit(main())
