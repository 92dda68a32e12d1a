"""`python -m bench.sanitize` runs `bench.kernels.sanitize`."""

from bench.kernels.sanitize import main

if __name__ == "__main__":
    raise SystemExit(main())
