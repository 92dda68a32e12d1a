"""`python -m bench.speculate` runs `bench.speculate.command`."""

from bench.speculate.command import main

if __name__ == "__main__":
    raise SystemExit(main())
