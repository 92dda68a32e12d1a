"""`python -m bench.scaling` runs `bench.compare.scaling`."""

from bench.compare.scaling import main

if __name__ == "__main__":
    raise SystemExit(main())
