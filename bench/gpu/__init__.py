"""Everything that needs a GPU in one run, and the bars it is judged by."""
