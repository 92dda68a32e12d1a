"""What `model.generate(custom_generate=...)` runs: Reward-Guided Speculative Decoding."""

from rsd_engine.integrations.transformers import generate

__all__ = ["generate"]
