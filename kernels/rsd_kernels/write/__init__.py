"""What follows the forward of a writer's pass, as one op of the loop."""
