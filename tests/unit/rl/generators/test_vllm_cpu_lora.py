"""The operators of adapters on a CPU against a loop over tokens, and against vLLM's own where those are right."""

from __future__ import annotations

import pytest
import torch

from surogate.errors import GeneratorError
from surogate.rl.generators import vllm_cpu_lora as ours

TOLERANCE = 1e-5
NUM_TOKENS, K, N, RANK, SLOTS = 7, 12, 10, 4, 3
MIXED = [0, -1, 2, 2, -1, 0, 1]


def weights(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(SLOTS, 1, rows, columns, generator=torch.Generator().manual_seed(rows))


def activations(columns: int) -> torch.Tensor:
    return torch.randn(NUM_TOKENS, columns, generator=torch.Generator().manual_seed(columns))


@pytest.mark.parametrize("slots", [MIXED, [1] * 7, [-1] * 7])
def test_each_row_gets_its_own_adapter_and_rows_of_the_base_none(slots: list[int]) -> None:
    x, a, b = activations(K), weights(RANK, K), weights(N, RANK)
    shrunk, out = torch.zeros(NUM_TOKENS, RANK), torch.ones(NUM_TOKENS, N + 3)
    ours.bgmv_shrink(x, a, shrunk, torch.tensor(slots), 0.5)
    ours.bgmv_expand_slice(shrunk, b, out, torch.tensor(slots), 2, N)
    for row, slot in enumerate(slots):
        expected = torch.ones(N + 3)
        if slot >= 0:
            expected[2 : 2 + N] += 0.5 * (b[slot, 0] @ (a[slot, 0] @ x[row]))
        torch.testing.assert_close(out[row], expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("slots", [[0, 2, 2, 1, 0, 0, 1], [2] * 7])
def test_where_every_row_has_an_adapter_vllms_operators_say_the_same(slots: list[int], adds: bool) -> None:
    from vllm.lora.ops.torch_ops import lora_ops as theirs

    by_sequence, lengths = torch.tensor([0, 2]), torch.tensor([3, 4])
    tokens = torch.tensor(slots)
    for sequence_wise in (False, True):
        index = (tokens,)
        if sequence_wise:
            index = (torch.tensor([0, 3]), lengths, by_sequence, 2, 4, NUM_TOKENS)
        prefix = "sgmv" if sequence_wise else "bgmv"
        results = []
        for module in (ours, theirs):
            shrunk, out = torch.zeros(NUM_TOKENS, RANK), torch.ones(NUM_TOKENS, N + 3)
            getattr(module, f"{prefix}_shrink")(activations(K), weights(RANK, K), shrunk, *index, 0.5)
            getattr(module, f"{prefix}_expand_slice")(shrunk, weights(N, RANK), out, *index, 2, N, adds)
            getattr(module, f"{prefix}_expand")(shrunk, weights(N, RANK), out, *index, add_inputs=True)
            results.append(out)
        torch.testing.assert_close(results[0], results[1], rtol=TOLERANCE, atol=TOLERANCE)


def test_vllms_own_operators_give_rows_of_the_base_an_adapter() -> None:
    """The reason for ours; when this fails, ours may go."""
    from vllm.lora.ops.torch_ops import lora_ops as theirs

    shrunk = torch.zeros(NUM_TOKENS, RANK)
    theirs.bgmv_shrink(activations(K), weights(RANK, K), shrunk, torch.tensor(MIXED))
    assert shrunk[1].abs().max() > 0.1


def test_more_rows_than_slots_are_clear_only_where_all_slots_are_the_same() -> None:
    x, a = activations(K), weights(RANK, K)
    out = torch.zeros(NUM_TOKENS, RANK)
    ours.bgmv_shrink(x, a, out, torch.tensor([1, 1]))
    torch.testing.assert_close(out, x @ a[1, 0].T, rtol=TOLERANCE, atol=TOLERANCE)
    with pytest.raises(GeneratorError, match="adapter on the LM head"):
        ours.bgmv_shrink(x, a, out, torch.tensor([-1, 1]))
    quiet = torch.zeros(NUM_TOKENS, RANK)
    ours.bgmv_shrink(x, torch.zeros_like(a), quiet, torch.tensor([-1, 1]))
    assert not quiet.any()
