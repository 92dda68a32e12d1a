"""The whole loop: by executor, by batching rule, and the memory it takes."""
