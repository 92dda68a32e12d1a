"""Benchmarks. Each is a command, `python -m bench.NAME`; `docs/benchmarks.md` lists them all."""
