"""`python -m bench.compare` runs `bench.compare.command`."""

from bench.compare.command import main

if __name__ == "__main__":
    raise SystemExit(main())
