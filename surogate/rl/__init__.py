"""Reinforcement learning from verifiable rewards; plain Python and torch, without Lightning."""
