"""The specification of the recipes' rounding against what it promises: unbiased, orthogonal, the same both ways."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from surogate.kernels import reference
from surogate.kernels import reference_rounding as rounding

LEVELS = torch.tensor(reference.E2M1_LEVELS[:8])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_random_numbers_are_those_of_philox() -> None:
    """The first of the known answers of Random123 1.14: Philox-4x32-10, key 0, counter 0."""
    known = torch.tensor([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8])
    assert torch.equal(rounding.philox_uniform(0, 4), (known >> 8) / 2**24)
    assert torch.equal(rounding.philox_uniform(0, 7)[:4], rounding.philox_uniform(0, 4))


def test_the_random_numbers_are_uniform_and_differ_by_seed() -> None:
    numbers = torch.stack([rounding.philox_uniform(seed, 2**16) for seed in (0, 1, 2**32, -1)])
    assert (numbers >= 0).all() and (numbers < 1).all()
    assert torch.allclose(numbers.mean(1), torch.tensor(0.5), atol=0.005)
    assert torch.allclose(numbers.var(1), torch.tensor(1 / 12), atol=0.002)
    correlation = torch.corrcoef(numbers) - torch.eye(4)
    assert correlation.abs().max() < 0.02


def test_stochastic_rounding_takes_one_of_the_two_neighbours() -> None:
    values = torch.linspace(-6, 6, 4001)
    rounded = reference.e2m1_decode(rounding.stochastic_e2m1_encode(values, torch.rand(4001, generator=generator())))
    below = torch.searchsorted(LEVELS, values.abs(), right=True) - 1
    above = (below + 1).clamp(max=7)
    is_neighbour = (rounded.abs() == LEVELS[below]) | (rounded.abs() == LEVELS[above])
    assert is_neighbour.all()
    assert ((rounded == 0) | (rounded.sign() == values.sign())).all()


def test_stochastic_rounding_keeps_what_is_exact_and_saturates() -> None:
    for uniform in (0.0, 1 - 2**-24):
        levels = torch.tensor(reference.E2M1_LEVELS)
        codes = rounding.stochastic_e2m1_encode(levels, torch.full((16,), uniform))
        assert torch.equal(codes, torch.arange(16, dtype=torch.uint8))
        beyond = rounding.stochastic_e2m1_encode(torch.tensor([6.4, -1e9]), torch.full((2,), uniform))
        assert reference.e2m1_decode(beyond).tolist() == [6, -6]


def test_stochastic_rounding_is_unbiased() -> None:
    """The mean of 4000 draws lies within 5 standard errors; a step is 2 at most, so one draw deviates by up to 1."""
    values = torch.linspace(-6, 6, 241)
    uniform = torch.rand(4000, 241, generator=generator())
    rounded = reference.e2m1_decode(rounding.stochastic_e2m1_encode(values.expand(4000, -1), uniform))
    assert (rounded.mean(0) - values).abs().max() < 5 / 4000**0.5
    nearest = reference.e2m1_decode(reference.e2m1_encode(values))
    assert (nearest - values).abs().max() > 0.9


def test_a_stochastic_gradient_is_unbiased_where_it_does_not_saturate() -> None:
    x = torch.randn(8, 64, generator=generator())
    global_scale = reference.nvfp4_global_scale(x, four_over_six=False)
    draws, total = 600, torch.zeros_like(x)
    for seed in range(draws):
        uniform = rounding.philox_uniform(seed, x.numel()).reshape(x.shape)
        codes, scale = rounding.nvfp4_quantize_stochastic(x, global_scale, uniform)
        total += reference.nvfp4_dequantize(codes, scale, global_scale, divides=True)
    step = (reference.e4m3_decode(scale) / global_scale).repeat_interleave(16, 1)
    saturates = x.abs() > 6 * step
    difference = ((total / draws - x) / step).abs()
    assert difference[~saturates].max() < 5 / draws**0.5
    assert (x.abs()[saturates] / step[saturates] <= 6 * (1 + 1 / 16)).all()
    assert saturates.float().mean() < 1 / 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_weight_in_tiles_has_the_same_values_as_its_transpose(dtype: torch.dtype) -> None:
    weight = torch.randn(48, 80, generator=generator()).to(dtype)
    values = reference.nvfp4_dequantize(*rounding.nvfp4_quantize_2d(weight), divides=True)
    transposed = reference.nvfp4_dequantize(*rounding.nvfp4_quantize_2d(weight.T.contiguous()), divides=True)
    assert torch.equal(values, transposed.T)
    rows = reference.nvfp4_global_scale(weight, four_over_six=False)
    by_row = [reference.nvfp4_quantize(w.contiguous(), rows, four_over_six=False) for w in (weight, weight.T)]
    a, b = (reference.nvfp4_dequantize(*quantized, rows, divides=True) for quantized in by_row)
    assert not torch.equal(a, b.T)


def test_a_tile_has_one_scale_and_the_last_may_be_shorter() -> None:
    weight = torch.randn(37, 32, generator=generator())
    _, scale, global_scale = rounding.nvfp4_quantize_2d(weight)
    for first in (0, 16, 32):
        for tile in (0, 1):
            part = weight[first : first + 16, 16 * tile : 16 * tile + 16]
            expected = reference.e4m3_encode(part.abs().amax() / 6 * global_scale)
            assert (scale[first : first + 16, tile] == expected).all()


def sylvester() -> Tensor:
    matrix = torch.ones(1, 1)
    for _ in range(4):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def test_the_hadamard_transform_is_the_matrix_of_sylvester() -> None:
    signs = torch.randint(0, 2, (16,), generator=generator()) * 2.0 - 1
    assert torch.equal(rounding.hadamard16(torch.eye(16), signs), signs[:, None] * sylvester() / 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_hadamard_transform_cancels_in_a_product(dtype: torch.dtype) -> None:
    x, y = torch.randn(2, 8, 64, generator=generator()).to(dtype)
    signs = torch.randint(0, 2, (16,), generator=generator()) * 2.0 - 1
    expected = x.float() @ y.float().T
    product = rounding.hadamard16(x, signs).float() @ rounding.hadamard16(y, signs).float().T
    assert (product - expected).norm() / expected.norm() < 4 * torch.finfo(dtype).eps  # of operands and sums


def test_the_hadamard_transform_spreads_an_outlier() -> None:
    x = torch.zeros(1, 16)
    x[0, 3] = 100
    assert torch.equal(rounding.hadamard16(x, torch.ones(16)).abs(), torch.full((1, 16), 25.0))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_an_fp8_cast_scales_rounds_and_saturates(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    x = torch.tensor([0.0, -1.0, 3.3, largest, -largest, 1e30, torch.inf, torch.nan])
    values = rounding.fp8_cast(x, torch.tensor(2.0), dtype).view(dtype).float()
    assert values[:3].tolist() == [0, -2, (torch.tensor(6.6)).to(dtype).float().item()]
    assert values[3:7].tolist() == [largest, -largest, largest, largest]
    assert values[7].isnan()


def test_the_largest_magnitude_of_nothing_is_zero() -> None:
    assert rounding.amax(torch.empty(0, 3)) == 0
    assert rounding.amax(torch.tensor([1.0, -3.0]).bfloat16()) == 3
