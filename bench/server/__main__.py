"""`python -m bench.server` runs `bench.server.command`."""

from bench.server.command import main

if __name__ == "__main__":
    raise SystemExit(main())
