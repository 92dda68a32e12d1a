"""`python -m bench.kernel_resources` runs `bench.kernels.resources`."""

from bench.kernels.resources import main

if __name__ == "__main__":
    raise SystemExit(main())
