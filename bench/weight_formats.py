"""`python -m bench.weight_formats` runs `bench.kernels.weight_formats`."""

from bench.kernels.weight_formats import main

if __name__ == "__main__":
    raise SystemExit(main())
