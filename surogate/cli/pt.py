"""`surogate pt cfg.yaml`: pretraining."""

from __future__ import annotations

from surogate.cli.train import run


def main(argv: list[str]) -> int:
    """Train as a flat configuration says."""
    return run("pt", argv)
