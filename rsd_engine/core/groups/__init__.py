"""Slots that fork: candidates for a step, and samples that share a prompt."""
