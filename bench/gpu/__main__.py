"""`python -m bench.gpu` runs `bench.gpu.command`."""

from bench.gpu.command import main

if __name__ == "__main__":
    raise SystemExit(main())
