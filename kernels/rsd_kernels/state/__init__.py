"""The data that ops share: slots, the rows of a pass, tables of the vocabulary."""
