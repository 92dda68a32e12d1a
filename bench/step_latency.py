"""`python -m bench.step_latency` runs `bench.step.latency`."""

from bench.step.latency import main

if __name__ == "__main__":
    raise SystemExit(main())
