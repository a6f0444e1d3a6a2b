"""Which layers of a model compute in a recipe's numbers, what stays, and where that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny import save_tiny_model, tiny_config
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from surogate.config.parts import LoraSpec, ModelSpec
from surogate.config.recipe import Recipe, load_recipe
from surogate.errors import ConfigError, HardwareError
from surogate.models import lora
from surogate.models.load import load_model
from surogate.models.weights import ParameterSource
from surogate.quant.compute import Computation, RecipeLinear, apply_recipe_, runs_natively
from surogate.quant.convert import Skip, convert_
from surogate.quant.experts import StoredExperts
from surogate.quant.fp8 import Fp8Format
from surogate.quant.gemm import CastGemm
from surogate.quant.linear import FrozenQuantLinear

CPU = torch.device("cpu")


def tiny(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(**changes))


def apply(model: nn.Module, recipe: str = "fp8_hybrid", num_layers: int = 2, **options: Any) -> Computation:
    options = {"emulate": True, **options} if recipe != "bf16" else options
    return apply_recipe_(model, load_recipe(recipe, options), device=CPU, num_layers=num_layers)


def test_every_linear_layer_of_the_decoder_computes_in_it_but_not_the_head() -> None:
    model = tiny()
    done = apply(model)
    assert len(done.layers) == 14 and all(name.startswith("model.layers.") for name in done.layers)
    assert done.unchanged == {"lm_head": "outside the decoder layers"}
    assert sum(isinstance(module, RecipeLinear) for module in model.modules()) == 14
    assert str(done) == (
        "Recipe fp8_hybrid: 14 linear layers compute in float8_e4m3, their gradients in float8_e5m2, emulated by "
        "dequantising; in the dtype of the weights: lm_head (outside the decoder layers)."
    )


@pytest.mark.parametrize("recipe", ["fp8_hybrid", "nvfp4"])
def test_parameters_and_their_names_stay_what_they_were(recipe: str) -> None:
    model = tiny(attention_bias=True)
    before = dict(model.named_parameters())
    state = list(model.state_dict())
    apply(model, recipe)
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in before.items()}
    assert list(model.state_dict()) == state


def adapted(folder: Path, **changes: Any) -> nn.Module:
    model = load_model(ModelSpec(source=str(save_tiny_model(folder))))
    return lora.inject(model, LoraSpec(rank=4, **changes), str(folder))


def test_adapters_keep_their_dtype_whatever_is_adapted_or_saved(tmp_path: Path) -> None:
    model = adapted(tmp_path, modules_to_save=["lm_head"])
    done = apply(model)
    computing = [name for name, module in model.named_modules() if isinstance(module, RecipeLinear)]
    assert len(computing) == len(done.layers) == 14 and all(name.endswith(".base_layer") for name in computing)
    assert set(done.unchanged) == {"lm_head"}


def test_a_stored_layer_gets_the_recipe_and_one_kept_from_storage_too(tmp_path: Path) -> None:
    model = adapted(tmp_path)
    convert_(model, Fp8Format(), Skip(last_layers=1), device=CPU, source=ParameterSource(), num_layers=2)
    apply(model)
    stored = [module for module in model.modules() if isinstance(module, FrozenQuantLinear)]
    assert len(stored) == 7 and all(module.gemm is not None for module in stored)
    assert sum(isinstance(module, RecipeLinear) for module in model.modules()) == 7
    assert not any("gemm" in name for name in model.state_dict())


def test_outer_layers_and_named_ones_stay_as_the_recipe_says() -> None:
    done = apply(tiny(num_hidden_layers=8), "nvfp4", num_layers=8, unchanged_modules=["o_proj", "model.layers.3.mlp"])
    assert (
        done.unchanged["model.layers.7.self_attn.q_proj"] == "left out by the recipe"
    )  # 0.12 * 8 rounds to 1, 0.03 * 8 to 0
    assert not any(name.startswith(("model.layers.7.", "model.layers.3.mlp")) for name in done.layers)
    assert not any("o_proj" in name for name in done.layers)
    assert len(done.layers) == 7 * 6 - 3


def test_the_papers_share_of_layers_stays_in_models_of_usual_depth() -> None:
    recipe = load_recipe("nvfp4")
    for depth, kept in {4: 0, 16: 2, 28: 4, 32: 5, 36: 5, 64: 10}.items():
        fractions = (recipe.unchanged_first_fraction, recipe.unchanged_last_fraction)
        assert sum(round(fraction * depth) for fraction in fractions) == kept


def test_a_shape_that_does_not_divide_stays_and_is_named() -> None:
    done = apply(tiny(intermediate_size=40))
    assert {name: why for name, why in done.unchanged.items() if name.startswith("model.layers.0")} == {
        "model.layers.0.mlp.gate_proj": "40 x 32 is not made of 16s",
        "model.layers.0.mlp.up_proj": "40 x 32 is not made of 16s",
        "model.layers.0.mlp.down_proj": "32 x 40 is not made of 16s",
    }
    assert "model.layers.0.mlp.gate_proj, model.layers.0.mlp.up_proj and 2 more (40 x 32 is not made of 16s)" in str(
        done
    )


def test_matrices_that_are_no_linear_layers_are_named() -> None:
    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 32))

    model = tiny()
    model.model.layers[0].mlp.router = Router()
    model.model.layers[1].mlp.experts = StoredExperts([Fp8Format().quantize(torch.ones(16, 32))] * 2)
    unchanged = apply(model).unchanged
    assert unchanged["model.layers.0.mlp.router"] == "a Router"
    assert unchanged["model.layers.1.mlp.experts"] == "a StoredExperts"


def test_a_model_without_a_list_of_decoder_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no layer of this model can use it: 0, 1 \(outside the decoder layers\)"):
        apply(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)))


def test_an_entry_that_matches_nothing_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"no layer of this model is named qq_proj; there are, for example, model.layers\.0"
    ):
        apply(tiny(), unchanged_modules=["qq_proj"])
    with pytest.raises(ConfigError, match=r"\( is neither a name nor a regular expression"):
        apply(tiny(), unchanged_modules=["("])


# ---- the plain family


def test_the_bf16_recipe_leaves_a_model_alone() -> None:
    model = tiny()
    kinds = [type(module) for module in model.modules()]
    assert apply(model, "bf16").layers == []
    assert [type(module) for module in model.modules()] == kinds


def cast_linear(matmul: torch.dtype | None, gradient: torch.dtype | None) -> tuple[RecipeLinear, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = RecipeLinear(nn.Linear(24, 17), CastGemm(matmul, gradient))
    x, grad = torch.randn(9, 24, requires_grad=True), torch.randn(9, 17)
    layer(x).backward(grad)
    return layer, x, grad


def test_operands_are_cast_and_summed_in_float32() -> None:
    layer, x, grad = cast_linear(torch.bfloat16, torch.bfloat16)
    x16, w16, g16 = (t.detach().bfloat16().double() for t in (x, layer.weight, grad))
    assert torch.allclose(layer(x).double() - layer.bias.double(), x16 @ w16.t(), atol=1e-6)
    assert torch.allclose(x.grad.double(), g16 @ w16, atol=1e-6)
    assert torch.allclose(layer.weight.grad.double(), g16.t() @ x16, atol=1e-6)


def test_forward_and_backward_are_cast_apart() -> None:
    layer, x, grad = cast_linear(None, torch.bfloat16)
    assert torch.equal(layer(x), F.linear(x, layer.weight) + layer.bias)
    g16, w16 = grad.bfloat16().double(), layer.weight.detach().bfloat16().double()
    assert torch.allclose(x.grad.double(), g16 @ w16, atol=1e-6)


def test_a_16_bit_model_can_multiply_in_float32() -> None:
    model = tiny().bfloat16()
    done = apply(model, "bf16", matmul_dtype="float32", gradient_dtype="float32")
    assert str(done).startswith("Recipe bf16: 14 linear layers compute in float32, their gradients in float32; in the")
    layer = model.model.layers[0].mlp.up_proj
    x = torch.randn(9, 32).bfloat16()
    assert torch.equal(layer(x), F.linear(x.float(), layer.weight.float()).bfloat16())


# ---- chips


def test_numbers_without_a_tensor_core_are_refused_with_the_alternative() -> None:
    for name, capability in (("fp8_hybrid", "8.9"), ("nvfp4", "10.0")):
        with pytest.raises(HardwareError) as caught:
            apply_recipe_(tiny(), load_recipe(name), device=CPU, num_layers=2)
        assert f"recipe: {name} " in str(caught.value) and capability in str(caught.value)
        assert "a CPU has none. Set recipe: bf16, or recipe_emulate: true to compute" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "capability", "native"),
    [
        ("fp8_hybrid", (8, 0), None),
        ("fp8_hybrid", (8, 9), True),
        ("fp8_hybrid", (9, 0), True),
        ("nvfp4", (9, 0), None),
        ("nvfp4", (10, 0), True),
        ("nvfp4", (12, 0), True),
        ("bf16", (8, 0), True),
    ],
)
def test_the_chips_capability_decides(
    monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], native: bool | None
) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")

    def recipe(**options: Any) -> Recipe:
        return load_recipe(name, options)

    if native is None:
        with pytest.raises(HardwareError, match=rf"Some GPU has {capability[0]}\.{capability[1]}\. Set recipe: bf16"):
            runs_natively(recipe(), device)
        with pytest.raises(HardwareError, match=r"recipe_emulate: true with (fp4_)?backend: auto"):
            runs_natively(recipe(backend="scaled_mm"), device)
        assert runs_natively(recipe(emulate=True), device) is False
    else:
        assert runs_natively(recipe(), device) is native
    if name != "bf16":
        assert runs_natively(recipe(emulate=True), device) is bool(native)  # where the chip can, it does
        assert runs_natively(recipe(backend="emulate"), device) is False
