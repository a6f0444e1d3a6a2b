"""NorMuon against pytorch_optimizer's, its orthogonalisation against torch.optim.Muon's, and what only ours does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pytorch_optimizer import NorMuon as PeerNorMuon
from pytorch_optimizer.optimizer.utils.matrix import zero_power_via_newton_schulz_5
from support.families import family_config
from support.tiny import tiny_config
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from surogate.config.parts import LoraSpec
from surogate.models.lora import inject
from surogate.modes import normuon
from surogate.modes.normuon import NorMuon, hidden_matrices, orthogonalise

SHAPES = [(24, 40), (40, 24), (24, 40), (3, 16, 8), (24,)]
"""Wide, tall, one more of the first shape, a stack, and a vector for AdamW."""

SAME_PRODUCTS_TOLERANCE = 2e-5
"""Relative, of the whole change of a weight after ten steps: the same float32 arithmetic in another order."""

BFLOAT16_TOLERANCE = 0.02
"""Relative, of an orthogonalised matrix: five iterations in float32 here and in bfloat16 there."""


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    torch.manual_seed(1)
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]


def build(of: list[nn.Parameter], weight_decay: float = 0.0, **settings: Any) -> NorMuon:
    groups = [{"params": of[:-1], "hidden": True, "weight_decay": weight_decay}, {"params": of[-1:]}]
    return NorMuon(groups, lr=1e-2, **settings)


def give_gradients(of: list[nn.Parameter], seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in of:
        parameter.grad = torch.randn(parameter.shape).to(parameter.dtype)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_ten_steps_are_those_of_the_peer(monkeypatch: pytest.MonkeyPatch, weight_decay: float) -> None:
    # Its products are bfloat16's, so that ours would differ by their rounding: both take its orthogonalisation.
    monkeypatch.setattr(normuon, "orthogonalise", lambda x_BMN: zero_power_via_newton_schulz_5(x_BMN, 5).float())
    start, mine, theirs = parameters(), parameters(), parameters()
    for of in (start, mine, theirs):
        del of[3]  # the peer takes a stack for one flat matrix
    settings = {"lr": 1e-2, "weight_decay": weight_decay, "update_scale": "match_rms"}
    others = {"params": theirs[-1:], "use_muon": False, "lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8}
    peer = PeerNorMuon([{"params": theirs[:-1], "use_muon": True, **settings}, others])
    ours = build(mine, weight_decay, is_cautious=False)
    for seed in range(10):
        for of, optimizer in ((mine, ours), (theirs, peer)):
            give_gradients(of, seed)
            optimizer.step()
    for a, b, before in zip(mine, theirs, start, strict=True):
        assert torch.linalg.vector_norm(a - b) <= SAME_PRODUCTS_TOLERANCE * torch.linalg.vector_norm(b - before)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_a_matrix_is_orthogonalised_as_by_muon(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    gradient = torch.randn(shape)
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.grad = gradient.clone()
    square = min(1.0, (shape[1] / shape[0]) ** 0.5)  # Muon's own scale is max(1, rows / columns)^0.5
    torch.optim.Muon([parameter], lr=square, momentum=0.0, nesterov=False, weight_decay=0.0).step()
    ours = orthogonalise(gradient[None])[0]
    assert torch.linalg.matrix_norm(ours + parameter) <= BFLOAT16_TOLERANCE * torch.linalg.matrix_norm(ours)
    values = torch.linalg.svdvals(orthogonalise(gradient[None].double()))
    assert values.min() > 0.6 and values.max() < 1.25


def test_the_matrices_of_a_stack_are_matrices_of_their_own() -> None:
    stack, alone = nn.Parameter(torch.randn(3, 16, 8)), [nn.Parameter(torch.zeros(16, 8)) for _ in range(3)]
    stack.grad = torch.randn_like(stack)
    for i, parameter in enumerate(alone):
        parameter.data.copy_(stack[i])
        parameter.grad = stack.grad[i].clone()
    for of in ([stack], alone):
        NorMuon([{"params": of, "hidden": True}], lr=1e-2).step()
    assert torch.allclose(stack, torch.stack(list(alone)), rtol=0, atol=1e-6)


def test_every_update_has_the_size_of_adamws() -> None:
    of = parameters()
    before = [parameter.detach().clone() for parameter in of]
    give_gradients(of, 0)
    build(of).step()
    for parameter, start in list(zip(of, before, strict=True))[:3]:
        assert (parameter - start).square().mean().sqrt().item() == pytest.approx(1e-2 * normuon.UPDATE_RMS, rel=1e-4)


def test_cautious_decay_leaves_weights_that_the_update_moves_away_from_zero() -> None:
    plain, cautious = parameters(), parameters()
    for of, weight_decay in ((plain, 0.0), (cautious, 0.5)):
        give_gradients(of, 0)
        build(of, weight_decay).step()
    for start, a, b in list(zip(parameters(), plain, cautious, strict=True))[:-1]:
        towards_zero = (start - a) * start > 0
        decay = 1e-2 * 0.5 * start
        assert torch.allclose(a - b, torch.where(towards_zero, decay, 0.0), rtol=0, atol=1e-6)
        assert towards_zero.any() and not towards_zero.all()


def test_a_step_that_is_called_off_on_the_device_changes_no_bit() -> None:
    of = parameters()
    optimizer = build(of, 0.1, fused=True)
    give_gradients(of, 0)
    optimizer.step()
    weights, state = [p.detach().clone() for p in of], copy.deepcopy(optimizer.state_dict()["state"])
    give_gradients(of, 1)
    for parameter in of:
        assert parameter.grad is not None
        parameter.grad.view(-1)[0] = float("nan")
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    del optimizer.found_inf
    assert all(torch.equal(p, before) for p, before in zip(of, weights, strict=True))
    _check_equal(optimizer.state_dict()["state"], state)
    optimizer.found_inf = torch.zeros(())
    give_gradients(of, 2)
    optimizer.step()
    assert not any(torch.equal(p, before) for p, before in zip(of, weights, strict=True))


def _check_equal(state: dict[int, dict[str, Tensor]], other: dict[int, dict[str, Tensor]]) -> None:
    assert state.keys() == other.keys()
    for number, values in state.items():
        assert values.keys() == other[number].keys()
        for name, value in values.items():
            assert value.dtype == other[number][name].dtype and torch.equal(value, other[number][name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_goes_on_from_its_state_bit_for_bit(dtype: torch.dtype) -> None:
    of, again = parameters(dtype), parameters(dtype)
    optimizer = build(of, 0.1)
    for seed in range(2):
        give_gradients(of, seed)
        optimizer.step()
    resumed = build(again, 0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    _check_equal(resumed.state_dict()["state"], optimizer.state_dict()["state"])
    for parameter, other in zip(again, of, strict=True):
        parameter.data.copy_(other)
    for stepped, its in ((of, optimizer), (again, resumed)):
        give_gradients(stepped, 9)
        its.step()
    assert all(torch.equal(a, b) for a, b in zip(of, again, strict=True))


def test_a_matrix_without_a_gradient_keeps_every_bit_whatever_its_momentum() -> None:
    of = parameters()
    optimizer = build(of, 0.1)
    give_gradients(of, 0)
    optimizer.step()
    before, state = [p.detach().clone() for p in of], copy.deepcopy(optimizer.state_dict()["state"])
    give_gradients(of, 1)
    for gradient in (of[0].grad, of[3].grad[1]):  # type: ignore[index]
        assert gradient is not None
        gradient.zero_()
    optimizer.step()
    assert torch.equal(of[0], before[0]) and not torch.equal(of[2], before[2])  # of one shape
    assert torch.equal(of[3][1], before[3][1]) and not torch.equal(of[3][0], before[3][0])
    new = optimizer.state_dict()["state"]
    assert all(torch.equal(new[0][name], state[0][name]) for name in state[0])
    assert all(torch.equal(new[3][name][1], state[3][name][1]) for name in state[3])


def test_without_a_gradient_nothing_moves_and_nothing_breaks() -> None:
    of = parameters()
    for parameter in of:
        parameter.grad = torch.zeros_like(parameter)
    build(of).step()
    assert all(torch.equal(a, b) for a, b in zip(of, parameters(), strict=True))


@pytest.mark.parametrize("tied", [True, False])
def test_matrices_inside_the_network_are_hidden_and_embeddings_and_head_are_not(tied: bool) -> None:
    model = LlamaForCausalLM(tiny_config(tie_word_embeddings=tied))
    hidden = hidden_matrices(model)
    named = {name for name, parameter in model.named_parameters() if id(parameter) in hidden}
    parts = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert {name.split(".")[-2] for name in named} == set(parts) and len(named) == 2 * len(parts)


def test_of_an_adapter_both_factors_are_hidden_unless_they_are_an_embeddings_or_the_heads() -> None:
    model: Any = LlamaForCausalLM(tiny_config(tie_word_embeddings=False))
    spec = LoraSpec(target_modules=["q_proj", "lm_head"], modules_to_save=["down_proj", "embed_tokens"])
    model = inject(model, spec, "float32")
    hidden = hidden_matrices(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad and id(p) in hidden}
    parts = {name.split("layers.")[1].split(".", 1)[1] for name in trained}
    assert parts == {
        "self_attn.q_proj.lora_A.default.weight",
        "self_attn.q_proj.lora_B.default.weight",
        "mlp.down_proj.modules_to_save.default.weight",
    }


@pytest.mark.parametrize("family", ["Qwen3Moe", "GptOss"])
def test_the_experts_of_a_layer_are_hidden_and_their_biases_are_not(family: str) -> None:
    model = AutoModelForCausalLM.from_config(family_config(family))
    hidden = hidden_matrices(model)
    shapes = {name.rpartition(".")[2]: p.ndim for name, p in model.named_parameters() if id(p) in hidden}
    assert shapes["gate_up_proj"] == shapes["down_proj"] == 3
    assert not any("bias" in name for name in shapes)
