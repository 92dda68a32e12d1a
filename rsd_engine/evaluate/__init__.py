"""Compares ways of answering on questions whose answers are known: `rsd eval`."""
