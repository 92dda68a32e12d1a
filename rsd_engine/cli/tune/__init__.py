"""`rsd tune`: the threshold for a budget of target tokens."""
