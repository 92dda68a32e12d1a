"""The paper's arrangement of three models on transformers: the baseline of RSD."""
