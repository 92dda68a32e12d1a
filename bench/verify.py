"""`python -m bench.verify` runs `bench.step.verify`."""

from bench.step.verify import main

if __name__ == "__main__":
    raise SystemExit(main())
