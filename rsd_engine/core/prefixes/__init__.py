"""The prefix cache: K and V of earlier requests, found again by their tokens."""
