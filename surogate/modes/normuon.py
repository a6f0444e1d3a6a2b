"""NorMuon: orthogonalised momentum for the matrices inside a network, AdamW for all else.

Li et al., NorMuon (arXiv 2510.05491), Algorithm 1: the momentum of a matrix is orthogonalised as in Muon, each of its
rows (the weights of a neuron) is divided by the root of a running mean of its squares, and the whole is scaled to a
root mean square of 0.2. That is about the size of AdamW's updates, so **one learning rate serves both halves**.

Deviations: Nesterov's momentum, as in the authors' code; a weight decays only where the update moves it towards zero,
too (cautious weight decay, arXiv 2510.12402), unless that is turned off; and a matrix whose gradient is zero, such as
that of an expert without tokens, stays as it is: what is left of its momentum would be scaled up to a whole step.

Shapes: B matrices, M rows (outputs), N columns (inputs).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer
from torch.optim.adamw import adamw
from typing_extensions import override

from surogate.models.hidden import base_model

UPDATE_RMS = 0.2
NUM_ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration, from K. Jordan's Muon: steepest at 0, so that small directions grow fast."""
EPSILON = 1e-10
"""Added to the roots of rows that may be zero."""

BATCH_ELEMENTS = 2**26
"""Parameters of one shape are orthogonalised together, up to so many numbers at a time; a larger one alone."""


def hidden_matrices(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that map hidden states to hidden states: no embedding, head, bias or norm.

    A parameter of three dimensions is a stack of matrices: the experts of a layer. GPT-2 and the experts of GPT-OSS
    have their matrices transposed, so there a row belongs to an input.
    """
    head = base_model(model).get_output_embeddings()
    others = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    for module in model.modules():
        if isinstance(module, nn.Embedding | _ConvNd):
            others |= {id(parameter) for parameter in module.parameters()}
    return {
        id(parameter)
        for name, parameter in model.named_parameters()
        if parameter.ndim in (2, 3)
        and id(parameter) not in others
        and "embedding" not in name
        and not name.endswith("bias")  # of a stack of experts, which has two dimensions
    }


class NorMuon(Optimizer):
    """The optimizer; groups with `hidden: True` hold (M, N) or (B, M, N) matrices, the others are AdamW's.

    Args:
        params: groups.
        lr: learning rate of all.
        betas: of AdamW.
        eps: of AdamW.
        momentum: decay of the mean of a matrix's gradients.
        row_beta: decay of the mean square of an orthogonalised row.
        is_cautious: decay a weight only where the update moves it towards zero.
        fused: let AdamW's fused kernel do its half; then `found_inf`, a scalar on the device, may be set before a step
            and keeps it from changing anything.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum: float = 0.95,
        row_beta: float = 0.95,
        is_cautious: bool = True,
        fused: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "hidden": False, "fused": fused}
        super().__init__(params, defaults)
        self._momentum, self._row_beta, self._is_cautious = momentum, row_beta, is_cautious

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["hidden"]:
                for batch in _alike(trained):
                    self._step_matrices(batch, group)
            elif trained:
                self._step_others(trained, group)
        return loss

    def _step_matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update matrices of one shape, dtype and device."""
        states = [self._matrix_state(parameter) for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.found_inf is not None:
            is_finite = self.found_inf.squeeze() == 0
            gradients = [torch.where(is_finite, gradient, 0.0) for gradient in gradients]
        moves = [(gradient != 0).any(-1, keepdim=True).any(-2, keepdim=True).float() for gradient in gradients]
        for state, gradient, moving in zip(states, gradients, moves, strict=True):
            state["momentum"].lerp_(gradient, ((1 - self._momentum) * moving).to(gradient.dtype))
        updates = [g.lerp(state["momentum"], self._momentum) for state, g in zip(states, gradients, strict=True)]
        shape = parameters[0].shape
        update_BMN = orthogonalise(torch.stack(updates).view(-1, *shape[-2:]))
        square_BM1 = update_BMN.square().mean(-1, keepdim=True)
        row_square_BM1 = torch.stack([state["row_square"] for state in states]).view_as(square_BM1)
        row_square_BM1.lerp_(square_BM1, (1 - self._row_beta) * torch.stack(moves).view(-1, 1, 1))
        update_BMN /= row_square_BM1.sqrt() + EPSILON
        norm_B11 = torch.linalg.matrix_norm(update_BMN, keepdim=True)
        update_BMN *= UPDATE_RMS * math.sqrt(shape[-2] * shape[-1]) / norm_B11.clamp_min(EPSILON)
        rows = row_square_BM1.view(len(parameters), *shape[:-1], 1)
        stepped = zip(parameters, update_BMN.view(-1, *shape), states, rows, moves, strict=True)
        for parameter, update, state, row, moving in stepped:
            state["row_square"].copy_(row)
            if group["weight_decay"]:
                decay = group["weight_decay"] * parameter
                update += torch.where(update * parameter > 0, decay, 0.0) if self._is_cautious else decay
            parameter.sub_(update * (group["lr"] * moving))

    def _matrix_state(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
            state["row_square"] = parameter.new_zeros((*parameter.shape[:-1], 1), dtype=torch.float32)
        return state

    def _step_others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self._other_state(parameter, group["fused"]) for parameter in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],  # of AMSGrad
            [state["step"] for state in states],
            fused=group["fused"],
            found_inf=self.found_inf,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _other_state(self, parameter: Tensor, fused: bool) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu")
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)  # which gives all state the parameter's dtype
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, state in state_dict["state"].items():
            if "row_square" in state:
                parameter = parameters[number]
                self.state[parameter]["row_square"] = state["row_square"].to(parameter.device, copy=True)


def orthogonalise(matrices_BMN: Tensor) -> Tensor:
    """Move all singular values close to 1 (0.7 to 1.2), by Newton-Schulz iteration.

    Args:
        matrices_BMN: of any float dtype.

    Returns:
        (B, M, N) float32; a matrix of zeros stays one. On a GPU the products are bfloat16's.
    """
    a, b, c = COEFFICIENTS
    x = matrices_BMN.to(torch.bfloat16 if matrices_BMN.is_cuda else torch.float32)
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).float()


def _alike(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Group parameters of one shape, dtype and device, in batches of a bounded size."""
    groups: dict[Any, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        groups[parameter.shape, parameter.dtype, parameter.device].append(parameter)
    for alike in groups.values():
        size = max(1, BATCH_ELEMENTS // max(1, alike[0].numel()))
        yield from (alike[start : start + size] for start in range(0, len(alike), size))
