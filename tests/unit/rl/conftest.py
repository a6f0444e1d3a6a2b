"""What holds for every test of surogate.rl: it answers for its own processes only."""

from __future__ import annotations

import pytest
from support.descendants import forget_children


@pytest.fixture(autouse=True)
def forgotten_children() -> None:
    forget_children()
