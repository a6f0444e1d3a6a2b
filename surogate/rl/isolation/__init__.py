"""Isolation: how a process gives up what it may do, for good; on Linux, by the standard library alone, without root."""
