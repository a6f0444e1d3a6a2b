"""Data to loss: rows from any source, rendered, tokenised, packed, and dealt out as optimizer steps."""
