"""Products of rows with a weight, alone or after a norm."""
