"""After a writer's pass: send ended draft steps to the PRM, keep the others; decide scored ones."""
