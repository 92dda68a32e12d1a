"""`python -m bench.text_path` runs `bench.compare.text_path`."""

from bench.compare.text_path import main

if __name__ == "__main__":
    raise SystemExit(main())
