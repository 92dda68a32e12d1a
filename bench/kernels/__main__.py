"""`python -m bench.kernels` runs `bench.kernels.model_ops`."""

from bench.kernels.model_ops import main

if __name__ == "__main__":
    raise SystemExit(main())
