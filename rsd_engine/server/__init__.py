"""An OpenAI-compatible server around one engine; needs the `server` extra."""
