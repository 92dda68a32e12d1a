"""What scores the steps of an engine: how its PRM is fed, and scorers that need none."""
