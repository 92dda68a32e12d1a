"""Choose the next pass, pack its rows and take their pages."""
