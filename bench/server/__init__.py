"""The server beside the engine that it serves."""
