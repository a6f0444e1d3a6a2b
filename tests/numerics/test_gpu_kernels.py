"""On a GPU: the Triton kernels give the CPU's bits, products agree with the dequantised weight, and a run trains."""

from __future__ import annotations

import pytest
import torch

from surogate.kernels import ops, products
from surogate.quant.fp4 import Nvfp4Format
from surogate.quant.fp8 import Fp8Format
from surogate.quant.linear import frozen_linear
from surogate.quant.nf4 import Nf4Format
from surogate.quant.stored import StorageFormat, StoredWeight

pytestmark = pytest.mark.gpu

FORMATS: list[StorageFormat] = [
    Nf4Format(),
    Nf4Format(block_size=512, double_quant=False),
    Fp8Format(),
    Fp8Format(block_size=64),
    Nvfp4Format(),
    Nvfp4Format(four_over_six=False),
]
SHAPES = [(4096, 1024), (576, 1536), (333, 272), (1, 16)]
PRODUCT_TOLERANCE = 2e-2
"""Of bfloat16 products, relative to the largest: sums are added up in another order."""


def named(storage: StorageFormat) -> str:
    return storage.name


def weight_of(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def arguments(stored: StoredWeight) -> tuple:
    return stored.kind, stored.shape, stored.tensors(), stored.numbers()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("storage", FORMATS, ids=named)
def test_a_gpu_stores_and_reads_the_bits_that_a_cpu_does(
    storage: StorageFormat, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight = weight_of(shape, dtype)
    on_cpu, on_gpu = storage.quantize(weight), storage.quantize(weight.cuda())
    assert torch.equal(on_gpu.codes.cpu(), on_cpu.codes)
    moved = on_cpu.to("cuda")  # the mean of nested scales may be summed in another order on a GPU
    assert torch.equal(moved.dequantize(dtype).cpu(), on_cpu.to("cpu").dequantize(dtype))


@pytest.mark.parametrize("num_tokens", [1, 7, 32])
@pytest.mark.parametrize("shape", SHAPES[:2])
@pytest.mark.parametrize("storage", FORMATS, ids=named)
def test_fused_products_equal_those_with_the_dequantised_weight(
    storage: StorageFormat, shape: tuple[int, int], num_tokens: int
) -> None:
    stored = storage.quantize(weight_of(shape, torch.bfloat16).cuda())
    dense = stored.dequantize(torch.bfloat16)
    for over_columns, width in ((True, shape[1]), (False, shape[0])):
        x = torch.randn(num_tokens, width, device="cuda", dtype=torch.bfloat16)
        if not products._fits(stored.kind, stored.shape, stored.numbers()):
            continue
        got = products._fused(x, *arguments(stored), over_columns=over_columns)
        expected = x.float() @ (dense.T if over_columns else dense).float()
        assert (got.float() - expected).abs().max() <= PRODUCT_TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("num_tokens", [4, 2048])
@pytest.mark.parametrize("storage", FORMATS, ids=named)
def test_gradients_on_a_gpu_equal_those_of_the_dense_layer(storage: StorageFormat, num_tokens: int) -> None:
    stored = storage.quantize(weight_of((512, 768), torch.bfloat16).cuda())
    x = torch.randn(num_tokens, 768, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    grad = torch.randn(num_tokens, 512, device="cuda", dtype=torch.bfloat16)
    frozen_linear(x, stored).backward(grad)
    expected = grad.float() @ stored.dequantize(torch.float32)
    assert (x.grad.float() - expected).abs().max() <= PRODUCT_TOLERANCE * expected.abs().max()


def test_the_workspace_follows_the_stream() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    first = ops.workspace((64, 64), torch.bfloat16, device)
    with torch.cuda.stream(torch.cuda.Stream()):
        assert ops.workspace((64, 64), torch.bfloat16, device).data_ptr() != first.data_ptr()
