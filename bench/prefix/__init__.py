"""Prompts that begin alike: what it saves to read a common beginning once."""
