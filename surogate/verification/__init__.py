"""Proofs on a configuration of the user's own: that it resumes exactly, that its loss is invariant."""
