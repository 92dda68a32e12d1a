"""`rsd chat`: a conversation in the terminal."""
