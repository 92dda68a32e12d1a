"""`python -m bench.decode` runs `bench.compare.decode`."""

from bench.compare.decode import main

if __name__ == "__main__":
    raise SystemExit(main())
