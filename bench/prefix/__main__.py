"""`python -m bench.prefix` runs `bench.prefix.command`."""

from bench.prefix.command import main

if __name__ == "__main__":
    raise SystemExit(main())
