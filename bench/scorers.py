"""`python -m bench.scorers` runs `bench.compare.scorers`."""

from bench.compare.scorers import main

if __name__ == "__main__":
    raise SystemExit(main())
