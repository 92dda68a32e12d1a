"""A slot becomes several: its columns are copied, its pages shared."""
