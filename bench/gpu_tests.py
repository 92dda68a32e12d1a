"""`python -m bench.gpu_tests` runs `bench.gpu.marked_tests`."""

from bench.gpu.marked_tests import main

if __name__ == "__main__":
    raise SystemExit(main())
