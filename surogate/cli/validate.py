"""`surogate validate`: the validation of a nested configuration."""

from __future__ import annotations

from surogate.cli.fit import run


def main(argv: list[str]) -> int:
    """Measure a run on its validation data."""
    return run("validate", argv)
