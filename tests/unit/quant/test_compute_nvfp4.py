"""NVFP4 products against dense products of the dequantised operands, and what is random in them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from surogate.config.recipe import load_recipe
from surogate.kernels.reference import nvfp4_dequantize
from surogate.kernels.reference_rounding import hadamard16, nvfp4_quantize_2d
from surogate.quant.compute import RecipeLinear
from surogate.quant.compute_nvfp4 import (
    SIGNS,
    Nvfp4Gemm,
    Nvfp4Matrix,
    emulated_product,
    native_product,
    swizzled,
)
from surogate.quant.rounding import to_nvfp4, to_nvfp4_at_random

SAME_PRODUCT = 1e-6
"""Relative to the largest value: two sums of the same exact products in another order and precision."""

FORWARD_SNR, INPUT_SNR, WEIGHT_SNR = 15.0, 13.0, 13.0
"""dB, on normal numbers. Blocks of 16 in E2M1 have an SNR of about 20.5 dB to nearest (measured; NVFP4's published
figures are alike), a 16 x 16 tile about 19, and stochastic rounding about 3 less than nearest, since its error is
uniform over twice the width. The noise of two operands adds up: about 17, 15.5 and 15.5; 2 dB below."""

DRAWS = 400
MEAN_TOLERANCE = 5.0
"""Standard errors of the mean. A draw's deviation is at most half a step, and the widest step a third of the block's
largest value; over 1,000 values one in 1,700 experiments goes beyond five of them."""


def gemm(**options: Any) -> Nvfp4Gemm:
    return Nvfp4Gemm(load_recipe("nvfp4", options), native=False)


def linear(n: int = 32, k: int = 48, **options: Any) -> RecipeLinear:
    plain = nn.Linear(k, n, bias=False)
    plain.weight.data = normal(n, k, seed=2) / math.sqrt(k)
    return RecipeLinear(plain, gemm(**options))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def snr(exact: Tensor, got: Tensor) -> float:
    return 20 * math.log10(float(exact.norm() / (exact - got).norm()))


def to_nearest(matrix: Tensor, four_over_six: bool = False) -> Nvfp4Matrix:
    return Nvfp4Matrix(*to_nvfp4(matrix, four_over_six))


def stochastically(matrix: Tensor) -> Nvfp4Matrix:
    return Nvfp4Matrix(*to_nvfp4_at_random(matrix))


def dense(matrix: Nvfp4Matrix) -> Tensor:
    return nvfp4_dequantize(matrix.codes, matrix.scale, matrix.global_scale, divides=True).double()


def close(got: Tensor, expected: Tensor) -> bool:
    return bool((got - expected).abs().max() <= SAME_PRODUCT * expected.abs().max())


def run(layer: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Forward and backward; returns y, dX, dW."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(grad)
    weight_grad, layer.weight.grad = layer.weight.grad, None
    assert x.grad is not None
    return y.detach(), x.grad, weight_grad


# ---- products


@pytest.mark.parametrize("shape", [(8, 16, 16), (1, 48, 32), (33, 80, 16)])
def test_the_product_is_the_dense_one_of_the_rounded_operands(shape):
    m, k, n = shape
    a, b = to_nearest(normal(m, k)), to_nearest(normal(n, k, seed=1), four_over_six=True)
    assert close(emulated_product(a, b, torch.float32).double(), dense(a) @ dense(b).t())


def test_operands_without_their_global_scale_are_exact_in_bfloat16():
    values = to_nearest(normal(64, 64)).unscaled
    assert torch.equal(values.bfloat16().float(), values)


def test_forward_and_backward_are_those_of_the_paper():
    layer, x, grad = linear(), normal(40, 48), normal(40, 32, seed=1)
    weight = layer.weight.detach()
    torch.manual_seed(7)
    y, grad_x, grad_w = run(layer, x, grad)
    tiles, turned = Nvfp4Matrix(*nvfp4_quantize_2d(weight)), Nvfp4Matrix(*nvfp4_quantize_2d(weight.t().contiguous()))
    assert close(y.double(), dense(to_nearest(x)) @ dense(tiles).t())
    torch.manual_seed(7)
    assert close(grad_x.double(), dense(stochastically(grad)) @ dense(turned).t())
    rotation = hadamard16(torch.eye(16), torch.tensor(SIGNS))
    filled = [torch.cat([matrix, torch.zeros(8, matrix.shape[1])]) for matrix in (x, grad)]  # 40 tokens -> 48
    spread = [(matrix.t().reshape(-1, 16) @ rotation).reshape(matrix.shape[1], -1) for matrix in filled]
    assert close(grad_w.double(), dense(stochastically(spread[1])) @ dense(to_nearest(spread[0])).t())


def test_both_directions_see_the_same_weight_in_tiles_and_not_in_rows():
    weight = normal(32, 48)
    forward, backward = (dense(gemm()._rounded_weight(w.contiguous())) for w in (weight, weight.t()))
    assert torch.equal(forward, backward.t())
    rows = gemm(weight_block="1x16")
    assert not torch.equal(
        dense(rows._rounded_weight(weight)), dense(rows._rounded_weight(weight.t().contiguous())).t()
    )


def test_products_and_gradients_keep_the_signal_that_the_format_promises():
    layer, x, grad = linear(), normal(256, 48), normal(256, 32, seed=1)
    torch.manual_seed(0)
    y, grad_x, grad_w = run(layer, x, grad)
    weight = layer.weight.detach()
    assert snr(x @ weight.t(), y) > FORWARD_SNR
    assert snr(grad @ weight, grad_x) > INPUT_SNR
    assert snr(grad.t() @ x, grad_w) > WEIGHT_SNR


def test_four_over_six_brings_activations_nearer():
    x = normal(256, 48)
    assert snr(x.double(), dense(to_nearest(x, True))) > snr(x.double(), dense(to_nearest(x))) + 0.5


def test_results_have_the_dtype_of_the_input_and_gradients_that_of_the_weight():
    layer = linear().bfloat16()
    y, grad_x, grad_w = run(layer, normal(16, 48).bfloat16(), normal(16, 32, seed=1).bfloat16())
    assert (y.dtype, grad_x.dtype, grad_w.dtype) == (torch.bfloat16,) * 3


def test_a_frozen_layer_keeps_nothing_but_its_weight():
    layer, saved = linear(), []
    layer.weight.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        layer(normal(16, 48).requires_grad_())
    assert [tensor is layer.weight for tensor in saved] == [True]


def test_a_trained_layer_keeps_its_input_in_four_and_a_half_bits():
    layer, x, saved = linear(n=64, k=64), normal(64, 64), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        layer(x)
    assert sum(tensor.nbytes for tensor in saved if tensor is not layer.weight) == x.numel() * 4.5 / 8 + 4


def test_nan_stays_nan():
    x = normal(16, 48)
    x[3, 5] = math.nan
    assert linear()(x)[3].isnan().all()


# ---- stochastic rounding


def test_stochastic_rounding_is_right_on_average_and_rounding_to_nearest_is_not():
    # Values within 1/16 of a block's largest may saturate: the block's scale is rounded too, and down as often as up.
    x = normal(20, 64)
    torch.manual_seed(0)
    draws = torch.stack([dense(stochastically(x)) for _ in range(DRAWS)])
    largest = x.reshape(20, 4, 16).abs().amax(-1).repeat_interleave(16, 1)
    inner = x.abs() < 15 / 16 * largest
    error = draws.mean(0) - x
    assert (error.abs() <= MEAN_TOLERANCE * largest / 6 / math.sqrt(DRAWS))[inner].all()
    assert error[inner].mean().abs() < 1e-3
    biased = dense(to_nearest(x)) - x
    assert error[inner].square().mean() < biased[inner].square().mean() / 50  # 1/200 of twice the variance, and some
    assert (error[~inner].abs() <= largest[~inner] / 16).all()


def test_the_mean_of_gradients_over_draws_approaches_that_of_unrounded_ones():
    layer, x, grad = linear(), normal(32, 48), normal(32, 32, seed=1)
    turned = Nvfp4Matrix(*nvfp4_quantize_2d(layer.weight.detach().t().contiguous()))
    torch.manual_seed(0)
    mean = torch.stack([run(layer, x, grad)[1] for _ in range(100)]).mean(0)
    exact = (grad.double() @ dense(turned).t()).float()
    assert snr(exact, mean) > snr(exact, run(layer, x, grad)[1]) + 10  # 20 dB but for the saturated largest values
    layer.gemm = gemm(stochastic_rounding=False)
    assert torch.equal(run(layer, x, grad)[1], run(layer, x, grad)[1])


def test_gradients_follow_the_generators_seed_and_nothing_else():
    layer, x, grad = linear(), normal(32, 48), normal(32, 32, seed=1)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(run(layer, x, grad))
    first, again, other = results
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(first[0], other[0])  # the forward pass draws nothing
    assert not torch.equal(first[1], other[1]) and not torch.equal(first[2], other[2])


def test_a_second_forward_pass_rounds_as_the_first():
    layer, x, grad = linear(), normal(32, 48), normal(32, 32, seed=1)
    results = []
    for checkpointed in (False, True):
        inputs = x.clone().requires_grad_()
        torch.manual_seed(3)
        y = checkpoint(layer, inputs, use_reentrant=False) if checkpointed else layer(inputs)
        y.backward(grad)
        results.append((y.detach(), inputs.grad, layer.weight.grad))
        layer.weight.grad = None
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# ---- the Hadamard transform


def test_the_transform_is_orthogonal_and_cancels_in_the_weights_gradient():
    rotation = hadamard16(torch.eye(16), torch.tensor(SIGNS))
    assert torch.allclose(rotation @ rotation.t(), torch.eye(16), atol=1e-6)
    assert sorted(set(SIGNS)) == [-1, 1]
    x, grad = normal(37, 48), normal(37, 32, seed=1)
    spread = gemm()._spread
    assert torch.allclose(spread(grad) @ spread(x).t(), grad.t() @ x, atol=1e-4)
    plain = gemm(hadamard=False)._spread(x)
    assert plain.shape == (48, 48) and torch.equal(plain[:, :37], x.t()) and not plain[:, 37:].any()


def test_the_transform_spreads_an_outlier_over_its_block():
    x = torch.zeros(32, 48)
    x[5, 7] = 100.0
    spread = gemm()._spread(x)
    assert torch.equal(spread[7, :16].abs(), torch.full((16,), 25.0)) and not spread[7, 16:].any()


# ---- the tensor core, without one


def test_block_scales_lie_as_cublas_reads_them():
    scale = torch.arange(130 * 6).reshape(130, 6).to(torch.uint8) + 1
    flat = swizzled(scale)
    assert flat.shape == (256 * 8,)
    expected = torch.zeros(256 * 8, dtype=torch.uint8)
    for r in range(130):
        for s in range(6):
            tile = (r // 128) * 2 + s // 4
            expected[tile * 512 + (r % 32) * 16 + (r % 128) // 32 * 4 + s % 4] = scale[r, s]
    assert torch.equal(flat, expected)


@pytest.mark.parametrize("shape", [(64, 48, 32), (17, 80, 16)])
def test_torch_accepts_the_shapes_and_scales_of_the_native_product(shape):
    """No chip computes here: torch's own checks of scaled_mm run on fake CUDA tensors."""
    m, k, n = shape

    def matrix(rows: int) -> Nvfp4Matrix:
        return Nvfp4Matrix(
            torch.empty(rows, k // 2, dtype=torch.uint8, device="cuda"),
            torch.empty(rows, k // 16, dtype=torch.uint8, device="cuda"),
            torch.empty(1, device="cuda"),
        )

    with FakeTensorMode():
        result = native_product(matrix(m), matrix(n), torch.bfloat16)
    assert (result.shape, result.dtype) == ((m, n), torch.bfloat16)
