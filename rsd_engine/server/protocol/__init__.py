"""What clients send and what they get: OpenAI's fields, vLLM's additions, and one object `rsd`."""
