"""Write a finished step into the PRM's context, in the PRM's tokens."""
