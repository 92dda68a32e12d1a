"""Asks servers that speak OpenAI's protocol, and measures them; needs the `client` extra."""
