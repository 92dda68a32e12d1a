"""`python -m bench.precompile` runs `bench.kernels.precompile`."""

from bench.kernels.precompile import main

if __name__ == "__main__":
    raise SystemExit(main())
