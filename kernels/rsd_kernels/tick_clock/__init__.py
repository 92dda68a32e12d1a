"""Time stamps at the first and last op of a tick."""
