"""Draw a token at every place of a pass, append it and look for the end of the step."""
