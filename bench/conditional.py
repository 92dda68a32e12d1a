"""`python -m bench.conditional` runs `bench.kernels.conditional.command`."""

from bench.kernels.conditional.command import main

if __name__ == "__main__":
    raise SystemExit(main())
