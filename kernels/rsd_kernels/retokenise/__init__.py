"""Tokenise the end of a kept step again, as a tokenizer would that reads the text."""
