"""FP8 products against torch's own scaled product and its own casts, and the life of a scale."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from surogate.config.recipe import Recipe, load_recipe
from surogate.errors import CheckpointError
from surogate.quant.compute import RecipeLinear
from surogate.quant.compute_fp8 import (
    GRADIENT,
    WEIGHT,
    Fp8Gemm,
    Fp8Matrix,
    Fp8Scaling,
    X,
    emulated_product,
    native_product,
)
from surogate.quant.gemm import plain_products

CPU = torch.device("cpu")
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2

SAME_PRODUCT = 1e-6
"""Relative to the largest value: two float32 sums of the same exact products in another order."""

FORWARD_SNR, GRADIENT_SNR = 25.0, 19.0
"""dB. A normal number's rounding error is uniform over a step, so its SNR is about 6.02 * (mantissa bits + 1) + 7.3 dB:
31.4 for E4M3, 25.4 for E5M2. The noise of the two operands of a product adds up: 28.4 forward, 24.4 backward. Below
the normal numbers it grows; the floors leave 3 and 5 dB for that."""


def gemm(**options: Any) -> Fp8Gemm:
    return Fp8Gemm(Fp8Scaling(["layer"], load_recipe("fp8_hybrid", options), CPU), 0, native=False)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def snr(exact: Tensor, got: Tensor) -> float:
    return 20 * math.log10(float(exact.norm() / (exact - got).norm()))


def close(got: Tensor, expected: Tensor) -> bool:
    return bool((got - expected).abs().max() <= SAME_PRODUCT * expected.abs().max())


@pytest.mark.parametrize("shape", [(32, 64, 48), (1, 16, 16), (17, 48, 32), (33, 16, 80)])
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_the_emulated_product_is_that_of_torchs_scaled_mm(shape, dtype):
    m, k, n = shape
    scales = torch.tensor([3.7, 0.21])
    a, b = Fp8Matrix.of(normal(m, k), scales[0], dtype), Fp8Matrix.of(normal(n, k, seed=1), scales[1], E4M3)
    expected = torch._scaled_mm(a.codes, b.codes.t(), 1 / scales[0], 1 / scales[1], out_dtype=torch.float32)
    assert close(emulated_product(a, b, torch.float32), expected)
    assert close(native_product(a, b, torch.float32), expected)


def test_the_native_product_fills_up_tokens_and_takes_transposes():
    a, b = Fp8Matrix.of(normal(17, 32), torch.tensor(2.0), E5M2), Fp8Matrix.of(normal(17, 48), torch.tensor(3.0), E4M3)
    expected = emulated_product(a.transposed, b.transposed, torch.float32)
    assert close(native_product(a.transposed, b.transposed, torch.float32), expected)


def obvious(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three products, each operand scaled to its own largest value, by torch's casts and torch's scaled_mm."""

    def rounded(tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        scale = torch.finfo(dtype).max / tensor.abs().max()
        return (tensor * scale).clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(dtype), 1 / scale

    def product(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor) -> Tensor:
        column_major = b.t().contiguous().t()
        return torch._scaled_mm(a.contiguous(), column_major, scale_a, scale_b, out_dtype=torch.float32)

    (x8, sx), (w8, sw), (g8, sg) = rounded(x, E4M3), rounded(weight, E4M3), rounded(grad, E5M2)
    return product(x8, w8.t(), sx, sw), product(g8, w8, sg, sw), product(g8.t(), x8, sg, sx)


def run(layer: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Forward and backward; returns y, dX, dW."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(grad)
    weight_grad, layer.weight.grad = layer.weight.grad, None
    assert x.grad is not None
    return y.detach(), x.grad, weight_grad


def linear(n: int = 32, k: int = 48, bias: bool = False, **options: Any) -> RecipeLinear:
    plain = nn.Linear(k, n, bias=bias)
    plain.weight.data = normal(n, k, seed=2) / math.sqrt(k)
    return RecipeLinear(plain, gemm(**options))


def test_the_first_step_is_scaled_by_its_own_magnitudes_and_multiplied_as_torch_does():
    layer, x, grad = linear(), normal(64, 48), normal(64, 32, seed=1) * 1e-4
    for got, expected in zip(run(layer, x, grad), obvious(x, layer.weight.detach(), grad), strict=True):
        assert close(got, expected)


def test_products_and_gradients_keep_the_signal_that_the_format_promises():
    layer, x, grad = linear(), normal(256, 48), normal(256, 32, seed=1)
    y, grad_x, grad_w = run(layer, x, grad)
    weight = layer.weight.detach()
    assert snr(x @ weight.t(), y) > FORWARD_SNR
    assert snr(grad @ weight, grad_x) > GRADIENT_SNR
    assert snr(grad.t() @ x, grad_w) > GRADIENT_SNR


def test_the_bias_stays_exact_and_gets_its_gradient():
    layer = linear(bias=True)
    layer.bias.data = normal(32, seed=3)
    x, grad = normal(2, 8, 48), normal(2, 8, 32, seed=1)
    with torch.no_grad():
        without = layer.gemm(x, layer.weight)
        assert torch.equal(layer(x), without + layer.bias)
    run(layer, x, grad)
    assert torch.allclose(layer.bias.grad, grad.sum((0, 1)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_results_have_the_dtype_of_the_input_and_gradients_that_of_the_weight(dtype):
    layer = linear().to(dtype)
    y, grad_x, grad_w = run(layer, normal(16, 48).to(dtype), normal(16, 32, seed=1).to(dtype))
    assert (y.dtype, grad_x.dtype, grad_w.dtype) == (dtype, dtype, dtype)
    wide = run(linear(), normal(16, 48), normal(16, 32, seed=1))
    assert all(snr(w, n.float()) > GRADIENT_SNR for w, n in zip(wide, (y, grad_x, grad_w), strict=True))


def test_an_empty_micro_batch_has_a_graph_and_leaves_no_trace():
    layer = linear()
    y, grad_x, grad_w = run(layer, torch.zeros(0, 48), torch.zeros(0, 32))
    assert y.shape == (0, 32) and grad_x.shape == (0, 48) and not grad_w.any()
    assert not layer.gemm.scaling.seen_L3.any()


def test_a_layer_of_zeros_gives_zeros():
    layer = linear()
    layer.weight.data.zero_()
    assert not any(result.any() for result in run(layer, torch.zeros(4, 48), torch.zeros(4, 32)))


# ---- scales


def scaling(**options: Any) -> Fp8Scaling:
    return Fp8Scaling(["a", "b"], load_recipe("fp8_hybrid", options), CPU)


def feed(scales: Fp8Scaling, *magnitudes: float, operand: int = X) -> float:
    """Let tensors with these largest magnitudes pass in one step, end it, and return the next scale."""
    for magnitude in magnitudes:
        scales.scale_for(torch.tensor([0.0, -magnitude]), 0, operand, is_step=True)
    scales.roll_(lambda seen: seen)
    return float(scales.scale_L3[0, operand])


def test_the_scale_is_the_largest_code_over_the_largest_magnitude_of_the_history():
    scales = scaling(amax_history=3)
    assert [feed(scales, m) for m in (2.0, 7.0, 1.0, 0.5, 0.25)] == [448 / m for m in (2.0, 7.0, 7.0, 7.0, 1.0)]


def test_most_recent_forgets_at_once_and_a_margin_leaves_headroom():
    recent = scaling(amax_compute_algo="most_recent")
    assert [feed(recent, m) for m in (7.0, 2.0)] == [448 / 7, 448 / 2]
    assert feed(scaling(margin=2), 7.0) == 448 / 7 / 4
    assert feed(scaling(), 7.0, operand=GRADIENT) == 57344 / 7
    assert feed(scaling(gradient_dtype="float8_e4m3"), 7.0, operand=GRADIENT) == 448 / 7


def test_micro_batches_of_a_step_gather_their_magnitudes():
    assert feed(scaling(), 1.0, 7.0, 2.0) == 448 / 7


def test_the_scale_of_a_step_is_that_of_the_steps_before():
    scales = scaling()
    feed(scales, 4.0)
    assert scales.scale_for(torch.tensor([100.0]), 0, X, is_step=True) == 112
    assert Fp8Matrix.of(torch.tensor([[100.0]]), torch.tensor(112.0), E4M3).codes.item() == 448  # it saturates


def test_a_tensor_without_a_past_is_scaled_by_itself():
    scales = scaling()
    assert scales.scale_for(torch.tensor([1e-6]), 1, GRADIENT, is_step=False) == pytest.approx(57344 / 1e-6)
    assert scales.scale_for(torch.zeros(3), 1, GRADIENT, is_step=False) == 1


def test_zeros_keep_the_scale_and_what_is_not_finite_leaves_no_trace():
    scales = scaling(amax_history=2)
    feed(scales, 4.0)
    for magnitude in (math.inf, math.nan, 0.0, 0.0, 0.0):
        assert feed(scales, magnitude) == 112
    assert feed(scales, 8.0) == 56
    assert scales.history_HL3.isfinite().all()


def test_current_scaling_goes_by_each_tensor_alone():
    scales = scaling(scaling="current")
    assert feed(scales, 4.0) == 0
    assert scales.scale_for(torch.tensor([2.0]), 0, X, is_step=True) == 224
    assert not scales.history_HL3.any()


def test_the_largest_magnitude_of_all_ranks_counts():
    scales = scaling()
    scales.scale_for(torch.tensor([1.0]), 0, X, is_step=True)
    scales.roll_(lambda seen: torch.maximum(seen, torch.tensor(8.0)))
    assert scales.scale_L3[0, X] == 56 and scales.scale_L3[1, WEIGHT] == 56


def test_validation_leaves_no_trace():
    layer, x = linear(), normal(8, 48)
    layer.eval()(x.clone().requires_grad_()).sum().backward()
    with torch.no_grad():
        layer.train()(x)
    assert not layer.gemm.scaling.seen_L3.any()
    layer(x)
    assert layer.gemm.scaling.seen_L3[0].tolist()[:2] == [x.abs().max(), layer.weight.abs().max()]


def test_a_second_forward_pass_rounds_as_the_first_and_notes_nothing_new():
    """Activation checkpointing runs the forward pass again in the backward pass."""
    x, grad = normal(8, 48), normal(8, 32, seed=1)
    results, histories = [], []
    for checkpointed in (False, True):
        layer = linear()
        for step in range(3):
            inputs = (x * (step + 1)).requires_grad_()
            y = checkpoint(layer, inputs, use_reentrant=False) if checkpointed else layer(inputs)
            y.backward(grad / (step + 1))
            layer.gemm.scaling.roll_(lambda seen: seen)
        results.append((y.detach(), inputs.grad, layer.weight.grad))
        histories.append(layer.gemm.scaling.history_HL3)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert torch.equal(*histories) and histories[0].any()


def test_state_is_taken_up_again_and_refused_for_other_layers():
    scales, again = scaling(), scaling()
    feed(scales, 3.0, operand=WEIGHT)
    again.load_state_dict(scales.state_dict())
    assert torch.equal(again.history_HL3, scales.history_HL3) and torch.equal(again.scale_L3, scales.scale_L3)
    with pytest.raises(CheckpointError, match="FP8 scales of 2 layers, and this run computes 1 layers"):
        Fp8Scaling(["a"], Recipe(name="r", gradient_dtype="float8_e5m2"), CPU).load_state_dict(scales.state_dict())


# ---- what is kept


def kept_by(layer: RecipeLinear, x: Tensor) -> list[Tensor]:
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        layer(x)
    return saved


def test_a_trained_layer_keeps_its_input_in_eight_bits_and_a_frozen_one_not_at_all():
    layer, x = linear(), normal(64, 48).requires_grad_()
    trained = kept_by(layer, x)
    assert [t.dtype for t in trained if t.shape == x.shape] == [E4M3]
    layer.weight.requires_grad_(False)
    assert [tuple(t.shape) for t in kept_by(layer, x) if t is not layer.weight] == [()]


def test_comparisons_can_do_without_rounding():
    layer, x = linear(), normal(4, 48)
    with plain_products():
        assert torch.equal(layer(x), F.linear(x, layer.weight))
    assert not torch.equal(layer(x), F.linear(x, layer.weight))
