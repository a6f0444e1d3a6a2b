"""Environments: prompts, and rewards of what the policy makes of them (base.py)."""
