"""Undo rejected tokens: move K/V cursors back and return pages."""
