"""Experts in few bits compute what transformers' own experts do, and keep nothing unpacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.quantised import save_gpt_oss
from torch import Tensor, nn

from surogate.config.parts import ModelSpec
from surogate.models.dequantized import dequantize_
from surogate.models.load import load_model
from surogate.models.weights import ParameterSource, materialize_
from surogate.quant.convert import Skip, convert_
from surogate.quant.experts import FrozenQuantExperts
from surogate.quant.nf4 import Nf4Format

CPU = torch.device("cpu")


def stored_model(folder: Path, *, defer: bool = True, storage: Any = None) -> tuple[Any, str]:
    """A gpt-oss whose experts are stored, and what is said of it."""
    model = load_model(ModelSpec(source=str(folder), dtype="float32"), defer=defer).requires_grad_(False)
    conversion = convert_(model, storage, Skip(), device=CPU, source=ParameterSource())
    materialize_(model, CPU)
    return model, str(conversion)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_outputs_and_gradients_equal_those_of_dequantised_experts(implementation: str, tmp_path: Path) -> None:
    folder = save_gpt_oss(tmp_path)
    dense: Any = load_model(ModelSpec(source=str(folder), dtype="float32")).requires_grad_(False)
    dense.set_experts_implementation(implementation)
    stored, _ = stored_model(folder)
    results = []
    for model in (dense, stored):
        torch.manual_seed(1)
        inputs = torch.randn(1, 12, 32, requires_grad=True)
        logits = model(inputs_embeds=inputs).logits
        (logits * torch.randn_like(logits)).sum().backward()
        results.append((logits.detach(), inputs.grad))
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_experts_stay_packed_whether_deferred_or_loaded_first(tmp_path: Path) -> None:
    folder = save_gpt_oss(tmp_path)
    for defer in (True, False):
        model, said = stored_model(folder, defer=defer)
        experts = model.model.layers[0].mlp.experts
        assert isinstance(experts, FrozenQuantExperts) and experts.gate_up.shape == (4, 32, 128)
        assert "16 linear layers in mxfp4" in said and "(4.25 bits a weight)" in said
        assert all(p.dim() < 3 for p in experts.parameters())
        experts.to(torch.bfloat16)
        assert all(buffer.dtype == torch.uint8 for buffer in experts.buffers())


def test_nothing_unpacked_is_kept_for_the_backward_pass(tmp_path: Path) -> None:
    model, _ = stored_model(save_gpt_oss(tmp_path))
    experts: nn.Module = model.model.layers[0].mlp.experts
    hidden = torch.randn(7, 32, requires_grad=True)
    chosen = torch.stack([torch.randperm(4)[:2] for _ in range(7)])
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        experts(hidden, chosen, torch.rand(7, 2)).sum().backward()
    weights = {(64, 32), (128, 32), (32, 128), (32, 64)}
    assert kept and not [t for t in kept if t.is_floating_point() and tuple(t.shape) in weights]


def test_a_storage_format_leaves_stored_experts_alone(tmp_path: Path) -> None:
    model, said = stored_model(save_gpt_oss(tmp_path), storage=Nf4Format())
    assert isinstance(model.model.layers[0].mlp.experts, FrozenQuantExperts)
    assert "linear layers in nf4" in said and "16 linear layers in mxfp4" in said


def test_stored_experts_become_plain_again(tmp_path: Path) -> None:
    folder = save_gpt_oss(tmp_path)
    model, _ = stored_model(folder)
    dequantize_(model, torch.float32)
    expected = load_model(ModelSpec(source=str(folder), dtype="float32")).state_dict()
    got = model.state_dict()
    assert got.keys() == expected.keys() and all(torch.equal(got[name], tensor) for name, tensor in expected.items())
