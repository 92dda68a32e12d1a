"""`python -m bench.verify` runs `bench.kernels.verify`."""

from bench.kernels.verify import main

if __name__ == "__main__":
    raise SystemExit(main())
