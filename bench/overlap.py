"""`python -m bench.overlap` runs `bench.kernels.overlap`."""

from bench.kernels.overlap import main

if __name__ == "__main__":
    raise SystemExit(main())
