"""Draw a token for every sequence, append it and look for the end of the step."""
