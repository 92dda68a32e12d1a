"""Rewards of a PRM's hidden rows, and whether each accepts its step."""
