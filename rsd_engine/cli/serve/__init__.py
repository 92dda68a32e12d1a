"""`rsd serve`: an OpenAI-compatible server."""
