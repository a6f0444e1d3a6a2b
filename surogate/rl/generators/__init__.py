"""Engines that sample from the policy, behind one protocol (protocol.py)."""
