"""Single kernels: what they must match before they are timed, what they cost, how they compile."""
