"""Master weights: the optimizer updates a wider copy of the weights, the model computes with the narrow ones.

An update of bfloat16 weights that is smaller than 1/256 of a weight rounds away; a float32 copy keeps it. Gradients are
added up in the copy's dtype as well, micro-batch by micro-batch.

The one idea: in a checkpoint the copies stand *in place of* the model's own tensors, whose values they round to.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class MasterWeights:
    """Wide copies of narrow parameters.

    Args:
        parameters: those that train, by name.
        dtype: of the copies; a parameter that has it already is its own master.
        start: values of the copies by name, from a checkpoint; default the parameters' own.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], dtype: torch.dtype, start: dict[str, Tensor]):
        self.parameters: list[nn.Parameter] = []
        self._copies: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for name, parameter in parameters:
            if parameter.dtype == dtype:
                self.parameters.append(parameter)
                continue
            copy = nn.Parameter(parameter.detach().to(dtype))
            if name in start:
                copy.data.copy_(start[name])
            self._copies[name] = parameter, copy
            self.parameters.append(copy)

    def values(self) -> dict[str, Tensor]:
        """Return the copies by name, for a checkpoint."""
        return {name: copy.detach() for name, (_, copy) in self._copies.items()}

    def absorb_gradients_(self) -> None:
        """Add the model's gradients to those of the copies, and clear them."""
        for parameter, copy in self._copies.values():
            if parameter.grad is None:
                continue
            wide = parameter.grad.to(copy.dtype)
            copy.grad = wide if copy.grad is None else copy.grad.add_(wide)
            parameter.grad = None

    @torch.no_grad()
    def round_to_model_(self) -> None:
        """Give the model's parameters the values of their copies, rounded."""
        if self._copies:
            narrow, wide = zip(*self._copies.values(), strict=True)
            torch._foreach_copy_(narrow, wide)
