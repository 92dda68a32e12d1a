"""Token ids to hidden rows."""
