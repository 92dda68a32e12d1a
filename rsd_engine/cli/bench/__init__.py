"""`rsd bench`: benchmarks of what runs already."""
