"""LoRA updates added in place: PEFT's values and gradients, PEFT's forward for the rest, and fewer large tensors."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as PeftLinear
from support.tiny import fit, random_rows, save_tiny_model, step_batch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.kernels import products
from surogate.models.dequantized import plain_linear
from surogate.modes import SftModule
from surogate.precision import Fp8Precision, Nf4Precision, Nvfp4Precision, RecipePrecision
from surogate.quant.adapted import InPlaceLora, add_updates_in_place_
from surogate.quant.fp4 import Nvfp4Format
from surogate.quant.fp8 import Fp8Format
from surogate.quant.linear import FrozenQuantLinear
from surogate.quant.nf4 import Nf4Format
from surogate.quant.stored import StorageFormat
from surogate.quant.taps import LayerTap

FORMATS: list[StorageFormat] = [Nf4Format(), Fp8Format(), Nvfp4Format()]
N, K, B, T, R = 48, 64, 2, 10, 4
FLOAT32_TOLERANCE = 1e-6
"""Relative to the largest value: the scaling is multiplied before a sum or after it."""
BFLOAT16_STEP = 2.0**-8
"""The most that rounding to bfloat16 moves a value, relative to it."""
BFLOAT16_TOLERANCE = 3 * BFLOAT16_STEP
"""With an adapter in bfloat16 PEFT rounds three times (update, scaled update, sum); the sum in place rounds once."""

F32, BF16 = torch.float32, torch.bfloat16
DTYPES = [(F32, F32, FLOAT32_TOLERANCE), (BF16, BF16, BFLOAT16_TOLERANCE), (BF16, F32, BFLOAT16_STEP)]
"""Base, adapter, tolerance. In the last both sum in float32 and round once; two nearly equal sums may round apart."""


class Block(nn.Module):
    """A linear layer that PEFT can adapt."""

    def __init__(self, dtype: torch.dtype, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.proj = nn.Linear(K, N, bias=bias, dtype=dtype)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        result: Tensor = self.proj(x, **kwargs)
        return result


def adapted(
    dtype: torch.dtype = F32,
    adapter_dtype: torch.dtype = F32,
    storage: StorageFormat = FORMATS[0],
    in_place: bool = True,
    bias: bool = True,
    **config: Any,
) -> Any:
    """A PEFT model of one stored layer; the same weights whatever else differs."""
    values = {"r": R, "lora_alpha": 7, "target_modules": ["proj"], "init_lora_weights": False, **config}
    model: Any = get_peft_model(Block(dtype, bias), LoraConfig(**values), autocast_adapter_dtype=False)
    layer = model.base_model.model.proj
    base = layer.base_layer
    layer.base_layer = FrozenQuantLinear(storage.quantize(base.weight.detach()), base.bias, dtype)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(adapter_dtype)
    assert add_updates_in_place_(model) == 1 if in_place else True
    return model


def layer_of(model: Any) -> Any:
    return model.base_model.model.proj


def inputs(dtype: torch.dtype = F32, shape: tuple[int, ...] = (B, T, K)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


def results(model: Any, x: Tensor, recompute: bool = False) -> list[Tensor]:
    """Output, gradient of the input, gradients of the adapter."""
    model.zero_grad()
    torch.manual_seed(2)
    y = checkpoint(model, x, use_reentrant=False) if recompute else model(x)
    (y.float() * torch.linspace(-1, 1, N)).square().sum().backward()
    grads = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    assert x.grad is not None and len(grads) == 2
    found = [y.detach(), x.grad, *grads]
    x.grad = None
    return found


def assert_near(got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        if a.numel():
            assert (a.double() - b.double()).abs().max() <= tolerance * b.abs().max()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The layers that PEFT's own forward has computed."""
    seen: list[Any] = []
    original = PeftLinear.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(PeftLinear, "forward", forward)
    return seen


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("dtype", "adapter_dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("storage", FORMATS, ids=lambda storage: storage.name.split(",")[0])
def test_values_and_gradients_are_those_of_peft(
    calls: list[Any],
    storage: StorageFormat,
    dtype: torch.dtype,
    adapter_dtype: torch.dtype,
    tolerance: float,
    dropout: float,
) -> None:
    ours, theirs = (adapted(dtype, adapter_dtype, storage, one, lora_dropout=dropout) for one in (True, False))
    got = results(ours, inputs(dtype))
    assert not calls
    assert_near(got, results(theirs, inputs(dtype)), tolerance)
    assert len(calls) == 1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(K,), (T, K), (2, 3, 5, K), (0, K), (3, 0, K)], ids=str)
def test_any_shape_will_do(shape: tuple[int, ...], bias: bool) -> None:
    got, expected = (results(adapted(in_place=one, bias=bias), inputs(shape=shape)) for one in (True, False))
    assert_near(got, expected, FLOAT32_TOLERANCE)


def test_inputs_that_are_not_contiguous_will_do() -> None:
    x = inputs(shape=(K, T, B)).detach().permute(2, 1, 0).requires_grad_()
    got, expected = (results(adapted(in_place=one), x) for one in (True, False))
    assert_near(got, expected, FLOAT32_TOLERANCE)


def test_a_scaling_that_is_a_power_of_two_changes_no_bit_of_what_is_summed_in_float32() -> None:
    """Multiplying by it is exact, before a sum or after it. Twice the rank is the usual alpha."""
    for dtype in (F32, BF16):
        got, expected = (
            results(adapted(dtype, F32, in_place=one, lora_alpha=2 * R), inputs(dtype)) for one in (True, False)
        )
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_an_adapter_in_bfloat16_comes_nearer_to_the_exact_sum_than_in_peft() -> None:
    x = inputs(BF16)
    ours, theirs = (adapted(BF16, BF16, in_place=one) for one in (True, False))
    layer = layer_of(ours)
    with torch.no_grad():
        hidden = layer.lora_A["default"](x).double()  # rounded by both
        exact = layer.base_layer(x).double() + 7 / R * hidden @ layer.lora_B["default"].weight.double().T
        errors = [(model(x).double() - exact).square().mean().sqrt().item() for model in (ours, theirs)]
    assert errors[0] < 0.8 * errors[1]


def test_the_rule_for_gradients_is_right_in_float64() -> None:
    model = adapted(torch.float64, torch.float64)
    layer = layer_of(model)
    weights = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    x = torch.randn(2, 3, K, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: model(x), (x, *weights))


# --- what PEFT computes ----------------------------------------------------------------------------------------------


def _two_adapters(model: Any) -> None:
    model.add_adapter("second", LoraConfig(r=2, target_modules=["proj"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])


def _merged(model: Any) -> None:
    layer_of(model).merge()


def _replaced_base(model: Any) -> None:
    layer = layer_of(model)
    layer.base_layer = plain_linear(layer.base_layer, F32)


def _recipe(model: Any) -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor, stored: Any, bias: Tensor) -> Tensor:
            return x @ stored.dequantize(x.dtype).T * 2

    layer_of(model).base_layer.gemm = Doubled()


def _narrow_adapter(model: Any) -> None:
    for parameter in (layer_of(model).lora_A["default"].weight, layer_of(model).lora_B["default"].weight):
        parameter.data = parameter.data.to(BF16)


def _mixed_adapter(model: Any) -> None:
    layer_of(model).lora_B["default"].weight.data = layer_of(model).lora_B["default"].weight.data.double()
    layer_of(model).lora_A["default"].register_forward_hook(lambda layer, x, h: h.double())


def _hooked_up_projection(model: Any) -> None:
    layer_of(model).lora_B["default"].register_forward_hook(lambda layer, h, update: 3 * update)


def _pre_hooked_up_projection(model: Any) -> None:
    layer_of(model).lora_B["default"].register_forward_pre_hook(lambda layer, arguments: (3 * arguments[0],))


def _backward_hooked_up_projection(model: Any) -> None:
    layer_of(model).lora_B["default"].register_full_backward_hook(lambda layer, grads_h, grads_update: None)


def _other_up_projection(model: Any) -> None:
    class Tripled(nn.Linear):
        def forward(self, h: Tensor) -> Tensor:
            return 3 * super().forward(h)

    layer_of(model).lora_B["default"].__class__ = Tripled


CASES: dict[str, tuple[dict[str, Any], Callable[[Any], Any]]] = {
    "disabled": ({}, lambda model: model.base_model.disable_adapter_layers()),
    "merged": ({}, _merged),
    "two adapters": ({}, _two_adapters),
    "an adapter of another layer": ({}, lambda model: setattr(layer_of(model), "_active_adapter", ["elsewhere"])),
    "DoRA": ({"use_dora": True}, lambda model: None),
    "a bias of the adapter": ({"lora_bias": True}, lambda model: None),
    "a recipe": ({}, _recipe),
    "a base that is stored no more": ({}, _replaced_base),
    "an adapter narrower than the input": ({}, _narrow_adapter),
    "an adapter in two dtypes": ({}, _mixed_adapter),
    "a hook": ({}, _hooked_up_projection),
    "a hook before": ({}, _pre_hooked_up_projection),
    "a hook backward": ({}, _backward_hooked_up_projection),
    "another class of layer": ({}, _other_up_projection),
}


@pytest.mark.filterwarnings("ignore:.*adapter.*")
@pytest.mark.parametrize("case", CASES)
def test_what_is_not_the_plain_case_is_left_to_peft(calls: list[Any], case: str) -> None:
    config, change = CASES[case]
    found = []
    for in_place in (True, False):
        model = adapted(in_place=in_place, **config)
        torch.manual_seed(3)
        change(model)
        found.append(model(inputs()))
    assert len(calls) == 2 and isinstance(calls[0], InPlaceLora) and not isinstance(calls[1], InPlaceLora)
    assert torch.equal(*found)


def test_arguments_beside_the_input_are_left_to_peft(calls: list[Any]) -> None:
    x = inputs()
    names = ["default", "__base__"]
    found = [adapted(in_place=one).eval()(x, adapter_names=names) for one in (True, False)]
    assert len(calls) == 2 and torch.equal(*found)
    assert torch.equal(found[0][1], layer_of(adapted()).base_layer(x)[1])


def test_autocast_is_left_to_peft(calls: list[Any]) -> None:
    with torch.autocast("cpu", BF16):
        found = [adapted(in_place=one)(inputs()) for one in (True, False)]
    assert len(calls) == 2 and torch.equal(*found)


def test_switching_an_adapter_off_and_on_again(calls: list[Any]) -> None:
    model = adapted()
    x = inputs()
    first = model(x)
    with model.disable_adapter():
        assert torch.equal(model(x), layer_of(model).base_layer(x)) and len(calls) == 1
    assert torch.equal(model(x), first) and len(calls) == 1
    model.base_model.set_adapter("default")
    layer_of(model).scale_layer(3)
    torch.testing.assert_close(model(x), first + 2 * (first - layer_of(model).base_layer(x)))


def test_an_adapter_can_be_merged_and_taken_out_again() -> None:
    model = adapted()
    x = inputs()
    expected = model(x)
    layer_of(model).base_layer = plain_linear(layer_of(model).base_layer, F32)
    model.merge_adapter()
    torch.testing.assert_close(layer_of(model).base_layer(x), expected)
    model.unmerge_adapter()
    torch.testing.assert_close(model(x), expected)
    merged = model.merge_and_unload()
    assert type(merged.proj) is nn.Linear
    torch.testing.assert_close(merged(x), expected)


# --- what it costs ---------------------------------------------------------------------------------------------------


class LargeTensors(TorchDispatchMode):
    """Names the operators that made a tensor as large as the output, views and changes in place apart."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []
        self.memory: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() == B * T * N:
            storage = result.untyped_storage()
            if storage.data_ptr() not in self.memory:
                self.made.append(func.overloadpacket.__name__)
            self.memory[storage.data_ptr()] = storage  # kept, so that its address is not given to another
        return result


@pytest.mark.parametrize("in_place", [True, False])
def test_the_output_is_the_only_large_tensor_that_is_made(in_place: bool) -> None:
    model = adapted(in_place=in_place, bias=False)
    x, grad = inputs(), torch.ones(B, T, N)
    with LargeTensors() as forward:
        y = model(x)
    with LargeTensors() as backward:
        backward.memory[grad.untyped_storage().data_ptr()] = grad.untyped_storage()
        y.backward(grad)
    assert forward.made == (["mm"] if in_place else ["mm", "mm", "mul", "add"])
    assert backward.made == ([] if in_place else ["mul"])


@pytest.mark.parametrize(("dtype", "adapter_dtype", "_"), DTYPES)
@pytest.mark.parametrize("storage", FORMATS, ids=lambda storage: storage.name.split(",")[0])
def test_nothing_is_kept_for_backward_but_weights_the_input_and_the_hidden_state(
    storage: StorageFormat, dtype: torch.dtype, adapter_dtype: torch.dtype, _: float
) -> None:
    model = adapted(dtype, adapter_dtype, storage)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x = inputs(dtype)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    assert sorted(tensor.numel() for tensor in saved.values()) == [B * T * R, B * T * K]
    assert {tensor.dtype for tensor in saved.values()} == {adapter_dtype}


# --- what goes on around it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize(("dtype", "adapter_dtype", "_"), DTYPES)
def test_a_tapped_or_recomputed_pass_gives_the_same_bits(
    dtype: torch.dtype, adapter_dtype: torch.dtype, _: float, recompute: bool
) -> None:
    model = adapted(dtype, adapter_dtype, lora_dropout=0.3)
    base = layer_of(model).base_layer
    expected = results(model, inputs(dtype))
    tap = LayerTap(base)
    got = results(model, inputs(dtype), recompute)
    tap.remove()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert tap.y_TN is not None and tap.grad_y_TN is not None
    x = inputs(dtype).detach().view(-1, K)
    assert torch.equal(tap.y_TN, base(x))  # without the update
    y = expected[0].float()
    grad = (2 * y * torch.linspace(-1, 1, N).square()).to(dtype)
    assert_near([tap.grad_y_TN], [grad.view(-1, N)], BFLOAT16_STEP if dtype == BF16 else FLOAT32_TOLERANCE)


@pytest.mark.parametrize(("x_learns", "adapter_learns"), [(False, True), (True, False), (False, False)])
def test_what_needs_no_gradient_gets_none(x_learns: bool, adapter_learns: bool) -> None:
    model = adapted()
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(adapter_learns and "lora_" in name)
    x = inputs().detach().requires_grad_(x_learns)
    y = model(x)
    assert y.requires_grad == (x_learns or adapter_learns)
    if y.requires_grad:
        y.sum().backward()
    grads = [parameter.grad is not None for parameter in model.parameters()]
    assert (x.grad is not None) == x_learns and sum(grads) == 2 * adapter_learns
    with torch.inference_mode():
        torch.testing.assert_close(model(x), adapted(in_place=False)(x))


def test_an_output_that_is_a_view_can_be_added_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused kernels' is."""
    expected = results(adapted(), inputs())
    product = products.forward_product
    monkeypatch.setattr(products, "forward_product", lambda x, *stored: product(x, *stored)[None].view(len(x), N))
    assert_near(results(adapted(), inputs()), expected, 0)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo does it itself
@pytest.mark.parametrize(("dtype", "adapter_dtype", "tolerance"), DTYPES)
def test_torch_compile_follows_without_a_break(
    dtype: torch.dtype, adapter_dtype: torch.dtype, tolerance: float
) -> None:
    model = adapted(dtype, adapter_dtype).base_model.model
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected = results(model, inputs(dtype))
    assert_near(results(compiled, inputs(dtype)), expected, tolerance)


def _torch_saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, copy.copy, lambda model: pickle.loads(pickle.dumps(model)), _torch_saved]
)
def test_a_copied_layer_computes_with_its_own_weights(calls: list[Any], duplicate: Callable[[Any], Any]) -> None:
    layer = layer_of(adapted())
    again = duplicate(layer)
    x = inputs()
    assert type(again) is type(layer) and torch.equal(again(x), layer(x)) and not calls
    if duplicate is not copy.copy:
        again.lora_B["default"].weight.data.zero_()
        assert torch.equal(again(x), layer.base_layer(x)) and not torch.equal(layer(x), layer.base_layer(x))


def test_the_layer_stays_one_of_peft_and_its_state_the_same() -> None:
    ours, theirs = (adapted(in_place=one) for one in (True, False))
    assert isinstance(layer_of(ours), PeftLinear) and layer_of(ours).lora_A.keys() == {"default"}
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert [name for name, _ in ours.named_modules()] == [name for name, _ in theirs.named_modules()]
    assert add_updates_in_place_(ours) == 1 and type(layer_of(ours)).__mro__.count(InPlaceLora) == 1
    assert repr(layer_of(ours)) == repr(layer_of(theirs)).replace("lora.Linear", "lora.InPlaceLinear")


def test_layers_over_dense_weights_stay_as_they_are() -> None:
    model: Any = get_peft_model(Block(F32, False), LoraConfig(target_modules=["proj"]))
    assert add_updates_in_place_(model) == 0 and type(layer_of(model)) is PeftLinear


def _trained(folder: Path, precision: RecipePrecision, steps: int = 1) -> Any:
    """The model of a short run, in bfloat16 where the CPU has it."""
    spec = ModelSpec(source=str(save_tiny_model(folder)), dtype="bfloat16", recompute=False)
    torch.manual_seed(0)
    module = SftModule(spec, LoraSpec(rank=4, alpha=8.0, dropout=0.1), OptimSpec(learning_rate=1e-2))
    fit(module, [step_batch([[random_rows(2, seed)]]) for seed in range(steps)], plugins=[precision])
    return module.model


@pytest.mark.parametrize("plugin", [Nf4Precision, Fp8Precision, Nvfp4Precision])
def test_a_run_prepares_every_adapted_layer(
    calls: list[Any], tmp_path: Path, plugin: Callable[[], RecipePrecision]
) -> None:
    layers = [part for part in _trained(tmp_path, plugin()).modules() if isinstance(part, PeftLinear)]
    assert len(layers) == 14 and all(isinstance(layer, InPlaceLora) for layer in layers)
    assert not calls and all(layer.lora_B["default"].weight.any() for layer in layers)


def test_a_run_whose_scaling_is_a_power_of_two_has_the_bits_of_one_by_peft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where layers share an input, whose gradients are summed in bfloat16 and therefore in PEFT's order."""
    ours = _trained(tmp_path, Nf4Precision(), steps=4)
    monkeypatch.setattr("surogate.precision.base.add_updates_in_place_", lambda model: 0)
    theirs = _trained(tmp_path, Nf4Precision(), steps=4)
    assert not any(isinstance(part, InPlaceLora) for part in theirs.modules())
    expected = dict(theirs.named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in ours.named_parameters())


def test_a_recipe_leaves_the_layers_to_peft(calls: list[Any], tmp_path: Path) -> None:
    _trained(tmp_path, Nf4Precision(recipe="fp8_hybrid", recipe_options={"emulate": True}))
    assert len({id(layer) for layer in calls}) == 14


def test_layers_of_a_plain_base_stay_as_peft_made_them(tmp_path: Path) -> None:
    assert not any(isinstance(part, InPlaceLora) for part in _trained(tmp_path, RecipePrecision()).modules())
