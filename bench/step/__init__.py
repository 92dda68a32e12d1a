"""The time of one step, by its parts."""
