"""Head norms, rotary embedding, and the store of K and V into pages."""
