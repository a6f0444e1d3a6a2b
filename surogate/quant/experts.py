"""Mixtures of experts whose weights are stored in few bits: one matrix for each expert and projection.

    y = sum over its experts e of p_e * down_e(gate(gate_up_e(x)))

transformers holds the experts of a layer as two 3-D parameters, which a mixture's forward indexes. Here each expert has
its own stored matrices and is dequantised for its own product, so memory never holds more than one expert's weight
unpacked, and the backward pass dequantises again (linear.py). What is not here: adapters on experts.

Shape legend: T tokens, K experts of a token, H hidden size, E experts, N output and I input features of a projection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from surogate.quant.linear import frozen_linear
from surogate.quant.stored import StoredWeight

PROJECTIONS = ("gate_up_proj", "down_proj")


class StoredExperts(nn.Module):
    """One projection of all experts: E stored matrices (N, I), which the model holds as (E, I, N).

    Args:
        weights: one for each expert.
    """

    def __init__(self, weights: Sequence[StoredWeight]) -> None:
        super().__init__()
        self.weights = nn.ModuleList(weights)

    def __iter__(self) -> Iterator[StoredWeight]:
        return iter(self.weights)  # type: ignore[arg-type]

    def __getitem__(self, expert: int) -> StoredWeight:
        return self.weights[expert]  # type: ignore[return-value]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the model's parameter."""
        rows, columns = self[0].shape
        return len(self.weights), columns, rows

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Return the model's parameter, (E, I, N)."""
        return torch.stack([weight.dequantize(dtype).T for weight in self])


class FrozenQuantExperts(nn.Module):
    """The experts of one layer over stored weights; computes what transformers' own eager forward does.

    Args:
        experts: transformers' module with transposed projections and biases; loses its projections.
        gate_up: stored `gate_up_proj`.
        down: stored `down_proj`.
    """

    def __init__(self, experts: Any, gate_up: StoredExperts, down: StoredExperts) -> None:
        super().__init__()
        for name in PROJECTIONS:
            delattr(experts, name)
        self.experts = experts
        self.gate_up, self.down = gate_up, down

    @override
    def forward(self, hidden_TH: Tensor, experts_TK: Tensor, probabilities_TK: Tensor) -> Tensor:
        result_TH = torch.zeros_like(hidden_TH)
        for expert in experts_TK.unique().tolist():
            tokens, slots = torch.where(experts_TK == expert)
            gate_up = frozen_linear(hidden_TH[tokens], self.gate_up[expert], self.experts.gate_up_proj_bias[expert])
            gated = self.experts._apply_gate(gate_up)
            down = frozen_linear(gated, self.down[expert], self.experts.down_proj_bias[expert])
            weighted = down * probabilities_TK[tokens, slots, None]
            result_TH.index_add_(0, tokens, weighted.to(result_TH.dtype))
        return result_TH

    def plain(self, dtype: torch.dtype) -> nn.Module:
        """Return transformers' module again, its projections dequantised to a dtype; this one is used up."""
        for name, stored in zip(PROJECTIONS, (self.gate_up, self.down), strict=True):
            setattr(self.experts, name, nn.Parameter(stored.dequantize(dtype).contiguous(), requires_grad=False))
        experts: nn.Module = self.experts
        return experts


def expert_layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Yield (parent, attribute, module) of the frozen experts that FrozenQuantExperts can replace."""
    for parent in list(model.modules()):
        for attribute, module in list(parent.named_children()):
            projections = [getattr(module, projection, None) for projection in PROJECTIONS]
            is_known = getattr(module, "is_transposed", False) and getattr(module, "has_bias", False)
            if is_known and all(isinstance(p, nn.Parameter) and not p.requires_grad for p in projections):
                yield parent, attribute, module
