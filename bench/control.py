"""`python -m bench.control` runs `bench.kernels.loop_ops`."""

from bench.kernels.loop_ops import main

if __name__ == "__main__":
    raise SystemExit(main())
