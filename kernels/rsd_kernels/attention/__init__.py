"""Attention of a pass's rows over paged K and V."""
