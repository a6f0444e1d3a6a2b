"""`surogate sft cfg.yaml`: supervised fine-tuning."""

from __future__ import annotations

from surogate.cli.train import run


def main(argv: list[str]) -> int:
    """Train as a flat configuration says."""
    return run("sft", argv)
