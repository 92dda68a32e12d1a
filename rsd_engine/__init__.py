"""Reward-guided speculative decoding: draft, target and process reward model in one process."""
