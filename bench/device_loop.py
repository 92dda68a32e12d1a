"""`python -m bench.device_loop` runs `bench.loop.device_loop`."""

from bench.loop.device_loop import main

if __name__ == "__main__":
    raise SystemExit(main())
