"""The engine inside other people's programs: a module for each."""
