"""Checkpoints whose weights are quantised already, as the formats' owners write them: reading and writing."""
