"""`python -m bench.quantised` runs `bench.quantised.command`."""

from bench.quantised.command import main

if __name__ == "__main__":
    raise SystemExit(main())
