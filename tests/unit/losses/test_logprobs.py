"""Piecewise log-probabilities and entropies against torch's log_softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from surogate.losses.logprobs import TokenLogprobs, linear_logprobs, module_logprobs

FLOAT32_TOLERANCE = 1e-5


def _inputs(dtype: torch.dtype = torch.float64, bias: bool = False) -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(11, 6, dtype=dtype, requires_grad=True)
    return hidden, nn.Linear(6, 13, bias=bias, dtype=dtype), torch.randint(0, 13, (11,))


def _cap(logits: Tensor) -> Tensor:
    return torch.tanh(logits / 2.0) * 2.0


def _plain(logits: Tensor, labels: Tensor, temperatures: Tensor | float) -> TokenLogprobs:
    """The same from whole logits, by torch alone."""
    scale = temperatures[:, None] if isinstance(temperatures, Tensor) else temperatures
    logprobs = torch.log_softmax(logits / scale, -1)
    entropy = torch.distributions.Categorical(logits=logits / scale).entropy()
    return TokenLogprobs(logprobs[torch.arange(len(labels)), labels], entropy)


def test_three_tokens_by_hand() -> None:
    """Logits (0, 0), (2 ln 3, 0), (0, 2 ln 3) at temperature 2 give p = 1/2, 3/4 and 1/4 to the first."""
    hidden = torch.tensor([[0.0, 0.0], [2 * math.log(3), 0.0], [0.0, 2 * math.log(3)]])
    head = nn.Linear(2, 2, bias=False)
    head.weight.data = torch.eye(2)
    logprobs, entropy = linear_logprobs(hidden, head, torch.tensor([0, 0, 0]), 2.0)
    of_quarters = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    assert logprobs.tolist() == pytest.approx([math.log(p) for p in (0.5, 0.75, 0.25)], abs=FLOAT32_TOLERANCE)
    assert entropy.tolist() == pytest.approx([math.log(2), of_quarters, of_quarters], abs=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("shape", [None, _cap], ids=["plain", "soft cap"])
@pytest.mark.parametrize("temperatures", [1.0, 0.7, torch.linspace(0.5, 1.5, 11)], ids=["1", "0.7", "of each token"])
@pytest.mark.parametrize("pieces", [1, 3, 11, "auto"])
def test_values_and_gradients_equal_those_of_whole_logits(
    pieces: int | str, temperatures: Tensor | float, shape: Callable[[Tensor], Tensor] | None
) -> None:
    hidden, head, labels = _inputs(bias=True)
    upstream = torch.randn(11, dtype=torch.float64)
    logits = head(hidden)
    wanted = _plain(logits if shape is None else shape(logits), labels, temperatures)
    got = linear_logprobs(hidden, head, labels, temperatures, shape, pieces)
    torch.testing.assert_close(got.logprobs_N, wanted.logprobs_N)
    torch.testing.assert_close(got.entropy_N, wanted.entropy_N)
    assert not got.entropy_N.requires_grad
    leaves = [hidden, *head.parameters()]
    gradients = torch.autograd.grad(got.logprobs_N, leaves, upstream)
    for g, w in zip(gradients, torch.autograd.grad(wanted.logprobs_N, leaves, upstream), strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("shape", [None, _cap], ids=["plain", "soft cap"])
def test_float64_gradient_check(shape: Callable[[Tensor], Tensor] | None) -> None:
    hidden, head, labels = _inputs(bias=True)

    def logprobs(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        layer = nn.Linear(6, 13, dtype=h.dtype)
        del layer.weight, layer.bias
        layer.weight, layer.bias = w, b  # type: ignore[assignment]
        return linear_logprobs(h, layer, labels, torch.linspace(0.5, 1.5, 11), shape, 3).logprobs_N

    assert torch.autograd.gradcheck(logprobs, (hidden, head.weight, head.bias))


def test_a_module_head_gives_the_same_as_a_linear_head_and_trains_its_own_parts() -> None:
    hidden, head, labels = _inputs()
    down, up = nn.Linear(6, 2, bias=False, dtype=torch.float64), nn.Linear(2, 13, bias=False, dtype=torch.float64)
    merged = nn.Linear(6, 13, bias=False, dtype=torch.float64)
    merged.weight.data = (head.weight + up.weight @ down.weight).detach()
    temperatures, upstream = torch.linspace(0.5, 1.5, 11), torch.randn(11, dtype=torch.float64)
    module = module_logprobs(hidden, lambda h: head(h) + up(down(h)), labels, temperatures, 4)
    linear = linear_logprobs(hidden, merged, labels, temperatures)
    torch.testing.assert_close(module, linear)
    assert not module.entropy_N.requires_grad
    of_module = torch.autograd.grad(module.logprobs_N, [hidden, head.weight, up.weight], upstream)
    of_linear = torch.autograd.grad(linear.logprobs_N, [hidden, merged.weight], upstream)
    torch.testing.assert_close(of_module[:2], of_linear)
    torch.testing.assert_close(of_module[2], of_linear[1] @ down.weight.T)


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_do() -> None:
    hidden, head, labels = _inputs()
    head.requires_grad_(False)
    linear_logprobs(hidden, head, labels, 1.0).logprobs_N.sum().backward()
    assert head.weight.grad is None and hidden.grad is not None


def test_no_token_gives_nothing_with_a_graph() -> None:
    hidden, head, _ = _inputs()
    none = torch.zeros(0, dtype=torch.int64)
    for scored in (linear_logprobs(hidden[:0], head, none, 1.0), module_logprobs(hidden[:0], head, none, 1.0, 4)):
        assert scored.logprobs_N.shape == scored.entropy_N.shape == (0,)
        scored.logprobs_N.sum().backward()
    assert hidden.grad is not None and not hidden.grad.any()


def test_a_token_that_cannot_be_sampled_adds_nothing_to_the_entropy() -> None:
    hidden, head, labels = _inputs(bias=True)
    head.bias.data[7] = -torch.inf
    labels = labels.where(labels != 7, 0)
    scored = linear_logprobs(hidden, head, labels, 1.0)
    keep = torch.arange(13) != 7
    torch.testing.assert_close(scored.entropy_N, _plain(head(hidden)[:, keep], labels.clamp_max(11), 1.0).entropy_N)
    assert torch.autograd.grad(scored.logprobs_N.sum(), hidden)[0].isfinite().all()


def test_bfloat16_hidden_states_are_scored_in_float32() -> None:
    hidden, head, labels = _inputs(torch.bfloat16)
    scored = linear_logprobs(hidden, head, labels, 0.9)
    assert scored.logprobs_N.dtype == scored.entropy_N.dtype == torch.float32
    torch.testing.assert_close(scored.logprobs_N, _plain(head(hidden).float(), labels, 0.9).logprobs_N)
    gradient = torch.autograd.grad(scored.logprobs_N.sum(), hidden)[0]
    assert gradient.dtype == torch.bfloat16


class _LargestResult(TorchDispatchMode):
    """Notes the most elements that a tensor made under it has."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.num_elements = max(self.num_elements, tensor.numel())
        return result


@pytest.mark.parametrize("shape", [None, _cap], ids=["plain", "soft cap"])
@pytest.mark.parametrize("is_module", [False, True], ids=["linear", "module"])
def test_nothing_larger_than_a_piece_is_made_or_saved(
    is_module: bool, shape: Callable[[Tensor], Tensor] | None
) -> None:
    num_tokens, vocab_size, step = 64, 1000, 8
    hidden = torch.randn(num_tokens, 4, requires_grad=True)
    head = nn.Linear(4, vocab_size)
    labels = torch.arange(num_tokens)
    saved: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    def logits(h: Tensor) -> Tensor:
        return head(h) if shape is None else shape(head(h))

    with _LargestResult() as largest, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        if is_module:
            scored = module_logprobs(hidden, logits, labels, 1.0, step)
        else:
            scored = linear_logprobs(hidden, head, labels, 1.0, shape, num_tokens // step)
        saved_by_forward = max(saved)
        scored.logprobs_N.sum().backward()
    assert head.weight.grad is not None
    assert largest.num_elements == step * vocab_size
    assert saved_by_forward <= head.weight.numel()
