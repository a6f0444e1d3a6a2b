"""Frozen weights in 4 or 8 bits: the formats, the layer that computes with them, and how a model gets them."""
