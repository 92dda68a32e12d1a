"""`rsd eval`: methods compared on questions with known answers."""
