"""Plain layers in the place of stored ones: what an adapter is merged into, and what other programs load."""

from __future__ import annotations

import torch
from torch import nn

from surogate.quant.experts import FrozenQuantExperts
from surogate.quant.linear import FrozenQuantLinear


def plain_linear(layer: FrozenQuantLinear, dtype: torch.dtype) -> nn.Linear:
    """Return a frozen linear layer that computes what a stored one does, its weight held in a dtype."""
    with torch.device("meta"):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight = nn.Parameter(layer.stored.dequantize(dtype), requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return plain


def dequantize_(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace every stored layer of a model by a plain one, one at a time."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, FrozenQuantLinear):
                setattr(parent, name, plain_linear(child, dtype))
            elif isinstance(child, FrozenQuantExperts):
                setattr(parent, name, child.plain(dtype))
