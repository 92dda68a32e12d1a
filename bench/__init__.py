"""Benchmarks. Each is a command, `python -m bench.NAME`; `bench/README.md` lists them all."""
