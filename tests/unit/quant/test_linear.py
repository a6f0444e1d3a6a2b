"""The frozen linear layer: its gradients, what it keeps, and that torch.compile can follow it."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from surogate.kernels import ops
from surogate.quant.fp4 import Nvfp4Format
from surogate.quant.fp8 import Fp8Format
from surogate.quant.linear import FrozenQuantLinear, frozen_linear
from surogate.quant.nf4 import Nf4Format
from surogate.quant.stored import StorageFormat

FORMATS: list[StorageFormat] = [Nf4Format(), Fp8Format(), Nvfp4Format()]
FLOAT32_TOLERANCE = 1e-5
BFLOAT16_TOLERANCE = 1e-2
"""Relative to the largest value: both sides round the same products to bfloat16, in another order of additions."""
N, K, T = 48, 64, 10


def named(storage: StorageFormat) -> str:
    return storage.name.split(",")[0]


class Adapted(nn.Module):
    """A linear layer that PEFT adapts."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.proj = nn.Linear(K, N, dtype=dtype).requires_grad_(False)
        inject_adapter_in_model(LoraConfig(r=4, target_modules=["proj"], init_lora_weights=False), self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


def pair(storage: StorageFormat, dtype: torch.dtype) -> tuple[Adapted, Adapted]:
    """The same adapted layer over a stored weight, and over the dense weight that it stands for."""
    quantised, dense = Adapted(dtype), Adapted(dtype)
    base = quantised.proj.base_layer
    layer = FrozenQuantLinear(storage.quantize(base.weight.detach()), base.bias, dtype)
    quantised.proj.base_layer = layer
    dense.proj.base_layer.weight.data = layer.weight
    return quantised, dense


@pytest.mark.parametrize("storage", FORMATS, ids=named)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, FLOAT32_TOLERANCE), (torch.bfloat16, BFLOAT16_TOLERANCE)]
)
def test_gradients_of_an_adapted_layer_equal_those_of_the_dequantised_dense_layer(
    storage: StorageFormat, dtype: torch.dtype, tolerance: float
) -> None:
    results = []
    for model in pair(storage, dtype):
        x = torch.randn(2, T, K, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        y = model(x)
        (y.float() * torch.linspace(-1, 1, N)).square().sum().backward()
        trained = [p.grad for p in model.parameters() if p.requires_grad]
        results.append([y.detach(), x.grad, *trained])
    assert len(results[0]) == 4
    for got, expected in zip(*results, strict=True):
        assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("storage", FORMATS, ids=named)
def test_the_rule_for_gradients_is_right_in_float64(storage: StorageFormat) -> None:
    stored = storage.quantize(torch.randn(8, 16))
    x = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: frozen_linear(x, stored, torch.ones(8, dtype=torch.float64)), x)


@pytest.mark.parametrize("storage", FORMATS, ids=named)
def test_nothing_is_saved_for_backward_but_the_stored_weight(storage: StorageFormat) -> None:
    stored = storage.quantize(torch.randn(N, K))
    saved: list[torch.Tensor] = []
    x = torch.randn(T, K, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        frozen_linear(x, stored)
    own = {buffer.data_ptr() for buffer in stored.buffers()}
    assert saved and {tensor.data_ptr() for tensor in saved} <= own


@pytest.mark.parametrize("storage", FORMATS, ids=named)
def test_an_adapted_layer_keeps_its_input_once_and_the_adapters_hidden_state(storage: StorageFormat) -> None:
    """What LoRA needs: x for A, A x for B; and references to weights."""
    model, _ = pair(storage, torch.float32)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x = torch.randn(T, K, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(x)
    assert sorted(tensor.numel() for tensor in saved.values()) == [T * 4, T * K]


@pytest.mark.parametrize("storage", FORMATS, ids=named)
def test_activation_checkpointing_gives_the_same_gradients(storage: StorageFormat) -> None:
    first, second = (storage.quantize(torch.randn(K, K)) for _ in range(2))
    grads = []
    for recompute in (False, True):
        x = torch.ones(T, K, requires_grad=True)

        def block(x: torch.Tensor) -> torch.Tensor:
            return frozen_linear(F.silu(frozen_linear(x, first)), second)

        y = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        y.square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("storage", FORMATS, ids=named)
def test_no_gradient_is_computed_where_none_is_asked_for(storage: StorageFormat) -> None:
    stored = storage.quantize(torch.randn(N, K))
    assert not frozen_linear(torch.randn(T, K), stored).requires_grad
    assert frozen_linear(torch.randn(0, K, requires_grad=True), stored).shape == (0, N)


@pytest.mark.parametrize("storage", FORMATS, ids=named)
def test_the_operator_passes_torchs_own_checks(storage: StorageFormat) -> None:
    stored = storage.quantize(torch.randn(N, K))
    operator = getattr(torch.ops.surogate, f"dequantize_{stored.kind}").default
    arguments = (*stored.tensors(), *stored.numbers(), [N, K], torch.bfloat16)
    torch.library.opcheck(operator, arguments)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo does it itself
@pytest.mark.parametrize("storage", FORMATS, ids=named)
def test_torch_compile_follows_an_adapted_layer_without_a_break(storage: StorageFormat) -> None:
    model, _ = pair(storage, torch.float32)
    results = []
    for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        x = torch.ones(T, K, requires_grad=True)
        model.zero_grad()
        run(x).square().sum().backward()
        results.append([x.grad, *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_the_workspace_is_one_piece_of_memory_for_all_layers() -> None:
    small = ops.workspace((4, 8), torch.float32, torch.device("cpu"))
    large = ops.workspace((64, 80), torch.float32, torch.device("cpu"))
    again = ops.workspace((5, 7), torch.float32, torch.device("cpu"))
    assert again.data_ptr() == large.data_ptr() and small.shape == (4, 8) and again.shape == (5, 7)


def test_a_layer_works_outside_of_inference_mode_after_it_worked_inside() -> None:
    stored = Nf4Format().quantize(torch.randn(N, 3 * K))
    x = torch.randn(T, 3 * K, dtype=torch.float16)  # a dtype whose workspace nobody else has asked for
    with torch.inference_mode():
        inside = frozen_linear(x, stored)
    assert torch.equal(frozen_linear(x, stored), inside)
