"""Lets `python -m rsd_engine.cli` stand in for the `rsd` script."""

from __future__ import annotations

from rsd_engine.cli import main

if __name__ == "__main__":
    main()
