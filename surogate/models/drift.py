"""How far one model is from another on held-out rows: KL divergence, agreement, and change of loss.

What is not here: which models are compared (merge.py, stored_merge.py) and where rows come from (the command line). The
one idea: **everything is computed in float32, whatever the weights are stored in**, so that a difference is one of
weights. Only positions that the rows supervise count, which is where a run is judged too.

Shape legend: N supervised positions, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from surogate.batches import IGNORE, PackedRow, TokenRow
from surogate.errors import ModelError

MAX_REFERENCE_BYTES = 1 << 30
"""Of the reference's log-probabilities, which are kept: 5,400 positions of a vocabulary of 49,152, 1,750 of 152,000."""

DEFAULT_TOKENS = 8192
"""Tokens of held-out rows to measure on: half a minute for a model of 135M weights on two cores."""

TOKENS_IN_A_PASS = 1024
"""Tokens that go through a model together, padding included, unless one row alone is longer."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Rows that nobody trained on.

    Attributes:
        rows: with their loss masks.
        origin: what they are, for people: "validation rows of the run".
    """

    rows: Sequence[TokenRow]
    origin: str

    def thinned(self, max_rows: int | None = None) -> HeldOut:
        """Keep at most that many rows, spread evenly over all; None keeps about DEFAULT_TOKENS."""
        if max_rows is None:
            max_rows = max(1, len(self.rows) * DEFAULT_TOKENS // max(1, sum(map(len, self.rows))))
        chosen = np.linspace(0, len(self.rows) - 1, min(max_rows, len(self.rows))).round().astype(int)
        return HeldOut(rows=[self.rows[int(number)] for number in chosen], origin=self.origin)


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What separates a model from the reference.

    Attributes:
        mean_kl: mean KL divergence of its next token from the reference's, in nats.
        top1_agreement: share of positions at which both find the same token likeliest.
        loss: mean negative log-likelihood of the rows' own tokens, in nats.
        loss_change: the same minus the reference's.
        loss_error: standard error of the change, positions taken as independent.
    """

    mean_kl: float
    top1_agreement: float
    loss: float
    loss_change: float
    loss_error: float


class Reference:
    """A model's predictions on held-out rows, against which others are measured.

    Args:
        model: a transformers model or a PEFT model of one, in evaluation mode.
        rows: to measure on; positions are thinned evenly where their log-probabilities would take too much memory.

    Attributes:
        num_positions: that are compared.
        loss: mean negative log-likelihood of the rows' own tokens, in nats.

    Raises:
        ModelError: the rows supervise nothing.
    """

    def __init__(self, model: Any, rows: Sequence[TokenRow]) -> None:
        self._passes = _passes(rows, MAX_REFERENCE_BYTES // (4 * _vocab_size(model)))
        if not self._passes:
            raise ModelError("The held-out rows supervise no token, so nothing can be measured on them. Use others.")
        with torch.no_grad(), float32_compute(model):
            self._log_probs = [one_pass.log_probs(model) for one_pass in self._passes]
        self._nll = [one_pass.nll(got) for one_pass, got in zip(self._passes, self._log_probs, strict=True)]
        self.num_positions = sum(map(len, self._nll))
        self.loss = torch.cat(self._nll).mean().item()

    def drift_of(self, model: Any) -> Drift:
        """Measure another model, which must have the same vocabulary."""
        kl, agrees, nll = [], [], []
        with torch.no_grad(), float32_compute(model):
            for one_pass, expected in zip(self._passes, self._log_probs, strict=True):
                got = one_pass.log_probs(model)
                kl.append(F.kl_div(got, expected, log_target=True, reduction="none").sum(-1))
                agrees.append(got.argmax(-1) == expected.argmax(-1))
                nll.append(one_pass.nll(got))
        loss_N = torch.cat(nll)
        change_N = loss_N - torch.cat(self._nll)
        return Drift(
            mean_kl=torch.cat(kl).mean().clamp_min(0).item(),  # rounding can put it below
            top1_agreement=torch.cat(agrees).float().mean().item(),
            loss=loss_N.mean().item(),
            loss_change=change_N.mean().item(),
            loss_error=(change_N.std(correction=0) / len(change_N) ** 0.5).item(),
        )


@dataclass(frozen=True)
class _Pass:
    """Rows that go through a model together.

    Padding stands on the right, where causal attention never sees it, so that no mask is needed.

    Attributes:
        ids_BT: int64.
        positions_N2: row and column of each position that is compared.
        labels_N: the token that each must predict.
    """

    ids_BT: Tensor
    positions_N2: Tensor
    labels_N: Tensor

    def log_probs(self, model: Any) -> Tensor:
        """Return what a model predicts at the positions, (N, V) in float32."""
        rows, columns = self.positions_N2.unbind(1)
        kwargs = {}
        if "logits_to_keep" in inspect.signature(_plain(model).forward).parameters:
            kept, columns = columns.unique(return_inverse=True)
            kwargs = {"logits_to_keep": kept}
        logits: Tensor = model(input_ids=self.ids_BT, use_cache=False, **kwargs).logits[rows, columns]
        return logits.float().log_softmax(-1)

    def nll(self, log_probs_NV: Tensor) -> Tensor:
        """Return the negative log-likelihoods of the labels, (N,)."""
        return F.nll_loss(log_probs_NV, self.labels_N, reduction="none")


def _passes(rows: Sequence[TokenRow], max_positions: int) -> list[_Pass]:
    packed = sorted((PackedRow.from_rows([row]) for row in rows), key=len)
    labels = [row.labels_T for row in packed]
    stride = -(-sum(int((of_row != IGNORE).sum()) for of_row in labels) // max(1, max_positions))
    if stride > 1:
        labels = _every(labels, stride)
    passes, group = [], list[int]()
    for number, row in enumerate(packed):
        if group and (len(group) + 1) * len(row) > TOKENS_IN_A_PASS:
            passes.append(_pass(packed, labels, group))
            group = []
        group.append(number)
    if group:
        passes.append(_pass(packed, labels, group))
    return [one_pass for one_pass in passes if len(one_pass.labels_N)]


def _every(labels: Sequence[np.ndarray], stride: int) -> list[np.ndarray]:
    """Keep every so many-th label of all rows taken together."""
    flat = np.concatenate(labels)
    kept = np.flatnonzero(flat != IGNORE)[::stride]
    thinned = np.full_like(flat, IGNORE)
    thinned[kept] = flat[kept]
    return np.split(thinned, np.cumsum([len(of_row) for of_row in labels])[:-1])


def _pass(packed: Sequence[PackedRow], labels: Sequence[np.ndarray], group: Sequence[int]) -> _Pass:
    width = max(len(packed[number]) for number in group)
    ids = np.zeros((len(group), width), dtype=np.int64)
    targets = np.full((len(group), width), IGNORE, dtype=np.int64)
    for place, number in enumerate(group):
        ids[place, : len(packed[number])] = packed[number].input_ids_T
        targets[place, : len(packed[number])] = labels[number]
    positions = np.argwhere(targets != IGNORE)
    return _Pass(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        torch.from_numpy(targets[positions[:, 0], positions[:, 1]]),
    )


def _plain(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _vocab_size(model: Any) -> int:
    size: int = _plain(model).get_input_embeddings().num_embeddings
    return size


@contextmanager
def float32_compute(model: nn.Module) -> Iterator[None]:
    """Let a model that holds its weights in 16 bits compute in float32, on a copy of one module's weights at a time."""
    stored: dict[nn.Parameter, Tensor] = {}

    def widen(module: nn.Module, *_: Any) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter.dtype in (torch.bfloat16, torch.float16):
                stored[parameter] = parameter.data
                parameter.data = parameter.data.float()

    def restore(module: nn.Module, *_: Any) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter in stored:
                parameter.data = stored.pop(parameter)

    hooks = [module.register_forward_pre_hook(widen) for module in model.modules()]
    hooks += [module.register_forward_hook(restore) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
