from __future__ import annotations

from pathlib import Path

from surogate.config.flat import SftConfig
from surogate.config.keys import keys_of
from surogate.config.reference import reference

PAGE = Path(__file__).resolve().parents[3] / "docs/reference/config.md"


def test_the_committed_page_is_the_generated_one():
    assert PAGE.read_text() == reference(), "run: python -m surogate.config.reference > docs/reference/config.md"


def test_every_key_has_a_row():
    rows = reference().splitlines()
    assert [name for name in keys_of(SftConfig) if not any(row.startswith(f"| `{name}` |") for row in rows)] == []
