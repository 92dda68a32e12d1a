"""`python -m bench.conditional` runs `bench.kernels.conditional`."""

from bench.kernels.conditional import main

if __name__ == "__main__":
    raise SystemExit(main())
