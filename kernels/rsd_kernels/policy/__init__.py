"""The probability w(reward) with which a step is accepted."""
