"""`python -m bench.memory` runs `bench.loop.memory`."""

from bench.loop.memory import main

if __name__ == "__main__":
    raise SystemExit(main())
