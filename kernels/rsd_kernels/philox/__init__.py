"""Counter-based random numbers (Philox4x32-10), for the draws of other ops."""
