"""Append decided steps to the log that the host reads."""
