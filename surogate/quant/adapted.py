"""The LoRA update of a frozen layer, added to the layer's output in place.

    y = x W^T            h = dropout(x) A^T            y += scaling * h B^T

PEFT makes the update, its scaled copy and the sum, each as large as y. BLAS multiplies, scales and adds in one pass, so
none of them is made, and the backward pass scales `g B` and `g^T h`, which are thin, instead of g. The adapter itself
stays PEFT's: its parameters, state dict, merging and switching are untouched, and whatever is not the plain case is
computed by PEFT's own forward.

Shape legend: T tokens (all leading dimensions), K in_features, N out_features, R rank.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from surogate.quant.linear import FrozenQuantLinear


def add_updates_in_place_(model: nn.Module) -> int:
    """Let each layer of PEFT over a FrozenQuantLinear add its update in place.

    Args:
        model: changed in place: such layers become instances of a subclass of their class. Other modules stay.

    Returns:
        The number of such layers in the model, those of earlier calls included.
    """
    layers: list[Any] = [part for part in model.modules() if _is_adapted(part)]
    for layer in layers:
        if not isinstance(layer, InPlaceLora):
            peft_class: Any = type(layer)
            layer.__class__ = _in_place_class(peft_class)
    return len(layers)


class InPlaceLora(nn.Module):
    """Goes before PEFT's `lora.Linear` in the bases of a class, and adds the update in place where that is the same.

    The base layer sees the tokens of a batch as one matrix, and what it returned is overwritten: a forward hook of it
    that keeps its output must copy it, as taps.py does.
    """

    peft_class: ClassVar[type[nn.Module]]

    @override
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output with the update of its adapter, (..., N), in the dtype of x.

        Args:
            x: (..., K), any float dtype.
            args: as PEFT's forward takes them; with any, that is what computes.
            kwargs: likewise.
        """
        adapter = None if args or kwargs else _adapter_to_add(self, x)
        if adapter is None:
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        return _adapted_linear(self, x, adapter)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class was made while running, so copies and pickles name the one that it was made from.
        return (_blank, (self.peft_class,), *super().__reduce_ex__(protocol)[2:])


def _is_adapted(part: nn.Module) -> bool:
    """Whether a module is PEFT's linear LoRA layer over a stored weight, or was before it became an InPlaceLora."""
    kind = part.peft_class if isinstance(part, InPlaceLora) else type(part)
    # By name, since models/lora.py alone imports peft; not by attributes, since another class has another forward.
    is_plain = (kind.__module__, kind.__qualname__) == ("peft.tuners.lora.layer", "Linear")
    return is_plain and isinstance(part.base_layer, FrozenQuantLinear)


@cache
def _in_place_class(peft_class: type[nn.Module]) -> type[nn.Module]:
    return type(f"InPlace{peft_class.__name__}", (InPlaceLora, peft_class), {"peft_class": peft_class})


def _blank(peft_class: Any) -> nn.Module:
    """Return an object without state, for pickle and deepcopy to fill."""
    in_place = _in_place_class(peft_class)
    return in_place.__new__(in_place)


def _adapter_to_add(layer: Any, x: Tensor) -> str | None:
    """Return the one adapter of a PEFT layer whose update can be added in place; None where PEFT has to compute."""
    names = layer.active_adapters
    if layer.disable_adapters or layer.merged or len(names) != 1:
        return None
    name: str = names[0]
    if name not in layer.lora_A or name in layer.lora_variant:  # a variant is DoRA or the like
        return None
    base, up = layer.base_layer, layer.lora_B[name]
    if not isinstance(base, FrozenQuantLinear) or base.gemm is not None or torch.is_autocast_enabled(x.device.type):
        return None
    # Its weight is read and the module not called, so nothing may depend on the call.
    if type(up) is not nn.Linear or up.bias is not None or _has_hooks(up):
        return None
    # PEFT adds in the wider of both dtypes, here the adapter's. An update narrower than y it rounds before it is added.
    is_wide_enough = torch.promote_types(x.dtype, up.weight.dtype) == up.weight.dtype
    return name if is_wide_enough and layer.lora_A[name].weight.dtype == up.weight.dtype else None


def _has_hooks(layer: nn.Module) -> bool:
    hooks = (layer._forward_pre_hooks, layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks)
    return any(hooks)


def _adapted_linear(layer: Any, x: Tensor, adapter: str) -> Tensor:
    """Return `x W^T + scaling * (dropout(x) A^T) B^T`, (..., N), in the dtype of x; summed in the adapter's dtype."""
    up_NR = layer.lora_B[adapter].weight
    # A matrix from the start: a change in place of a view would have autograd copy the gradient three times. But the
    # adapter takes x itself, so that where layers share it its gradients are summed in PEFT's order and round alike.
    y_TN = layer.base_layer(x.reshape(-1, x.shape[-1]))
    h = layer.lora_A[adapter](layer.lora_dropout[adapter](layer._cast_input_dtype(x, up_NR.dtype)))
    h_TR = h.reshape(-1, h.shape[-1])
    sum_TN = y_TN.to(up_NR.dtype).addmm_(h_TR, up_NR.T, alpha=layer.scaling[adapter])
    result: Tensor = sum_TN.to(x.dtype)
    return result.view(*x.shape[:-1], result.shape[-1])
