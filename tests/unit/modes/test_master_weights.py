"""Wide copies of narrow weights: small steps add up, gradients too, and a checkpoint brings them back."""

from __future__ import annotations

import torch
from torch import nn

from surogate.modes.master_weights import MasterWeights


def masters_of(*parameters: nn.Parameter, start: dict[str, torch.Tensor] | None = None) -> MasterWeights:
    named = [(str(i), parameter) for i, parameter in enumerate(parameters)]
    return MasterWeights(named, torch.float32, start or {})


def test_steps_that_round_away_in_bfloat16_add_up():
    alone, parameter = (nn.Parameter(torch.ones(4, dtype=torch.bfloat16)) for _ in range(2))
    masters = masters_of(parameter)
    with_masters = torch.optim.SGD(masters.parameters, lr=1e-3)
    without = torch.optim.SGD([alone], lr=1e-3)
    for _ in range(100):
        for optimizer, narrow in ((without, alone), (with_masters, parameter)):
            optimizer.zero_grad()
            narrow.sum().backward()
            if narrow is parameter:
                masters.absorb_gradients_()
            optimizer.step()
        masters.round_to_model_()
    assert torch.equal(alone, torch.ones_like(alone))
    assert torch.equal(parameter, torch.full_like(parameter, 0.9))


def test_gradients_of_micro_batches_add_up_in_float32():
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    masters = masters_of(parameter)
    for _ in range(300):
        parameter.grad = torch.ones_like(parameter)
        masters.absorb_gradients_()
    assert parameter.grad is None
    assert masters.parameters[0].grad.item() == 300.0  # bfloat16 stops at 256


def test_a_parameter_that_is_wide_already_is_its_own_master():
    wide = nn.Parameter(torch.ones(2))
    masters = masters_of(wide)
    assert masters.parameters == [wide]
    assert masters.values() == {}


def test_copies_come_back_from_a_checkpoint_with_all_their_bits():
    parameter = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    values = {"0": torch.tensor([1.0001])}
    restored = masters_of(parameter, start=values)
    assert torch.equal(restored.values()["0"], values["0"])
    assert restored.parameters[0].requires_grad
