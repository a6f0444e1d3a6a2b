"""Policy losses against those that TRL's GRPOTrainer computes on the same tensors: value and gradient.

TRL's own `_compute_loss` runs, on a trainer that is nothing but the attributes it reads and is handed the
log-probabilities instead of a model. aipo is not among TRL's losses; where nothing is masked and nothing pulls, it is
TRL's cispo with ratio_clip as the largest weight, and is checked as that.

Shape legend: B rollouts, T tokens of the longest one.
"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from surogate.config.parts_grpo import AdvantageSpec, LossSpec
from surogate.losses.advantages import group_advantages
from surogate.losses.grpo import SampledTokens, clip_fractions, normaliser, policy_loss

TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-12}
MAX_COMPLETION_LEN = 9
NO_MASKS = {"token_mask_low": 0.0, "token_mask_high": 1e9, "geo_mask_low": 0.0, "geo_mask_high": 1e9}
CASES = {
    "grpo": (LossSpec(type="grpo"), {"loss_type": "grpo"}),
    "grpo with other clips": (LossSpec(type="grpo", clip_low=0.1, clip_high=0.4), {"loss_type": "grpo"}),
    "grpo with a pull": (LossSpec(type="grpo", kl_tau=0.3), {"loss_type": "grpo", "beta": 0.3}),
    "grpo with a factor": (LossSpec(type="grpo", adv_tau=0.5), {"loss_type": "grpo", "factor": 0.5}),
    "dr_grpo": (LossSpec(type="dr_grpo"), {"loss_type": "dr_grpo"}),
    "dapo": (LossSpec(type="dapo"), {"loss_type": "dapo"}),
    "dapo with a pull": (LossSpec(type="dapo", kl_tau=0.3), {"loss_type": "dapo", "beta": 0.3}),
    "gspo": (LossSpec(type="gspo"), {"loss_type": "grpo", "level": "sequence"}),
    "gspo with a pull": (
        LossSpec(type="gspo", kl_tau=0.3, clip_low=0.2, clip_high=0.2),
        {"loss_type": "grpo", "level": "sequence", "beta": 0.3},
    ),
    "cispo": (LossSpec(type="cispo", clip_high=0.5), {"loss_type": "cispo", "epsilon_high": 1.5}),
    "cispo by default": (LossSpec(type="cispo"), {"loss_type": "cispo", "epsilon_high": 5.0}),
    "aipo without masks": (
        LossSpec(type="aipo", ratio_clip=1.5, sequence_mask_high=1e9, **NO_MASKS),  # type: ignore[arg-type]
        {"loss_type": "cispo", "epsilon_high": 1.5},
    ),
}


@pytest.fixture(scope="module")
def trainer_class() -> Any:
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # of its imports
        patch.setitem(sys.modules, "vllm", None)  # it would import vLLM, and complain about the version
        from trl.trainer.grpo_trainer import GRPOTrainer
    return GRPOTrainer


def _tensors(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return trainer and generator log-probabilities (B, T), advantages (B,) and the mask (B, T) of sampled tokens."""
    draw = torch.Generator().manual_seed(0)
    lens = torch.tensor([5, 1, 7, 3, 6, 2])
    mask = torch.arange(7)[None] < lens[:, None]
    generator = -torch.rand(6, 7, generator=draw, dtype=dtype) * 4 - 0.2
    trainer = (generator + 0.4 * torch.randn(6, 7, generator=draw, dtype=dtype)).requires_grad_()
    advantages = torch.tensor([1.3, -0.7, 0.4, -1.1, 0.0, -0.2], dtype=dtype)
    return trainer, generator, advantages, mask


def _trl_loss(trainer_class: Any, spec: LossSpec, options: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    trainer, generator, advantages, mask = _tensors(dtype)
    low, high = clip_fractions(spec)
    stub = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (trainer, torch.zeros_like(trainer), None),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        beta=options.get("beta", 0.0),
        epsilon_low=low,
        epsilon_high=options.get("epsilon_high", high),
        importance_sampling_level=options.get("level", "token"),
        loss_type=options["loss_type"],
        max_completion_length=MAX_COMPLETION_LEN,
        current_gradient_accumulation_steps=1,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    inputs = {
        "prompt_ids": torch.zeros(6, 1, dtype=torch.int64),
        "prompt_mask": torch.ones(6, 1, dtype=torch.int64),
        "completion_ids": torch.zeros(6, 7, dtype=torch.int64),
        "completion_mask": mask.to(dtype),
        "advantages": advantages * options.get("factor", 1.0),
        "old_per_token_logps": generator,
        "ref_per_token_logps": generator,
        "num_items_in_batch": mask.sum(),
    }
    loss = trainer_class._compute_loss(stub, None, inputs)
    return loss.detach(), torch.autograd.grad(loss, trainer)[0]


def _our_loss(spec: LossSpec, dtype: torch.dtype, num_micro_batches: int) -> tuple[Tensor, Tensor]:
    trainer, generator, advantages, mask = _tensors(dtype)
    total = trainer.new_zeros(())
    for rows in torch.arange(6).tensor_split(num_micro_batches):
        part = mask[rows]
        ids = torch.arange(len(rows))[:, None].expand_as(part)[part]
        tokens = SampledTokens(trainer[rows][part], generator[rows][part], advantages[rows][ids], ids, len(rows))
        total = total + policy_loss(tokens, spec).loss
    loss = total / normaliser(spec, mask.sum(), torch.tensor(6), MAX_COMPLETION_LEN)
    return loss.detach(), torch.autograd.grad(loss, trainer)[0]


@pytest.mark.parametrize("num_micro_batches", [1, 3])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_equal_those_of_trl(
    trainer_class: Any, case: str, dtype: torch.dtype, num_micro_batches: int
) -> None:
    spec, options = CASES[case]
    wanted, wanted_gradient = _trl_loss(trainer_class, spec, options, dtype)
    got, gradient = _our_loss(spec, dtype, num_micro_batches)
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(got, wanted, rtol=0, atol=TOLERANCES[dtype])
    torch.testing.assert_close(gradient, wanted_gradient, rtol=0, atol=TOLERANCES[dtype])


def test_the_spread_of_a_group_is_that_of_trl(trainer_class: Any) -> None:
    """TRL standardises in a method that also generates; its divisor is a function (with a float32 factor inside)."""
    from trl.trainer.utils import nanstd

    rewards = torch.tensor([0.0, 1.0, 0.25, 0.5], dtype=torch.float64)
    wanted = (rewards - rewards.mean()) / (nanstd(rewards) + 1e-4)
    got = group_advantages(rewards.tolist(), [1, 2, 3, 4], AdvantageSpec(type="std"))
    torch.testing.assert_close(torch.tensor(got, dtype=torch.float64), wanted, rtol=0, atol=TOLERANCES[torch.float32])
