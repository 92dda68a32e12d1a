"""Files of results that a stopped run is resumed from, shared by commands."""
