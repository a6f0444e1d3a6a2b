from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surogate.batches import TokenRow
from surogate.data.ledger import Ledger, Walk, WalkSpec
from surogate.data.row_store import RowStore
from surogate.data.step_batches import Share, StepBatchDataset, StepBatchLoader, StepPlanSampler, plans_in_file_order

PAD = 0


def store(first_id: int, lengths: list[int]) -> RowStore:
    """Rows whose tokens say which row they are; all but the first token supervised."""
    return RowStore.build(
        TokenRow(np.full(length, first_id + i, np.int32), np.arange(length) > 0) for i, length in enumerate(lengths)
    )


STORES = [store(100, [4, 6, 3, 8]), store(200, [5, 2, 7])]
WALK = Walk(
    [part.lengths for part in STORES],
    {name: part.fingerprint for name, part in zip("ab", STORES, strict=True)},
    WalkSpec(sequence_len=10, packing=True, seed=3, weights=None),
)


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 4))
def test_every_pack_goes_to_one_rank_and_all_ranks_get_as_many_micro_batches(
    num_packs: int, world_size: int, micro_batch_size: int
) -> None:
    packs = [[j] for j in range(num_packs)]
    dealt = [Share(world_size, rank, micro_batch_size).of(packs) for rank in range(world_size)]
    assert len({len(micro_batches) for micro_batches in dealt}) == 1
    for rank, micro_batches in enumerate(dealt):
        for k, micro_batch in enumerate(micro_batches):
            for b, (j,) in enumerate(micro_batch):
                assert j == (k * world_size + rank) * micro_batch_size + b
    assert sorted(j for m in dealt for packs in m for (j,) in packs) == list(range(num_packs))


def test_a_rank_without_packs_gets_an_empty_micro_batch() -> None:
    share = Share(world_size=2, rank=1, micro_batch_size=2)
    plan = next(iter(StepPlanSampler(WALK, lambda: WALK.start(0, 2), share)))
    batch = StepBatchDataset(STORES, PAD)[plan]
    assert len(batch.micro_batches) == 1
    assert (batch.num_tokens, batch.num_loss_tokens, batch.row_ids) == (0, 0, ())
    assert batch.ledger["step"] == 1


def loader(position: Ledger, num_workers: int = 0) -> StepBatchLoader:
    sampler = StepPlanSampler(WALK, lambda: position, Share(1, 0, 2))
    return StepBatchLoader(StepBatchDataset(STORES, PAD), sampler, num_workers)


def test_a_step_holds_the_tokens_of_the_rows_it_names() -> None:
    seen = []
    for batch in loader(WALK.start(0, 4)):
        ids = torch.cat([m.input_ids_BT.flatten() for m in batch.micro_batches])
        expected = sorted(100 * (source + 1) + row for source, row in batch.row_ids)
        assert sorted(set(ids.tolist()) - {PAD}) == expected
        assert batch.num_tokens == sum(len(STORES[source][row]) for source, row in batch.row_ids)
        assert batch.num_loss_tokens == batch.num_tokens - len(batch.row_ids)
        seen += batch.row_ids
    assert sorted(seen) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)]


def test_packing_efficiency_is_that_of_the_global_batch() -> None:
    batches = list(loader(WALK.start(0, 100)))
    assert len(batches) == 1
    num_packs = sum(m.input_ids_BT.shape[0] for m in batches[0].micro_batches)
    assert batches[0].packing_efficiency == pytest.approx(35 / (num_packs * 10))


def test_workers_give_the_same_batches_in_the_same_order_and_leave_torchs_random_state_alone() -> None:
    state = torch.get_rng_state()
    alone = list(loader(WALK.start(0, 2)))
    with_workers = list(loader(WALK.start(0, 2), num_workers=2))
    assert torch.equal(state, torch.get_rng_state())
    assert [b.ledger for b in with_workers] == [b.ledger for b in alone]
    assert [b.row_ids for b in with_workers] == [b.row_ids for b in alone]


def test_a_train_loader_has_no_length() -> None:
    with pytest.raises(TypeError):
        len(loader(WALK.start(0, 2)))


def test_validation_has_a_length_and_every_rank_as_many_batches_of_one_micro_batch() -> None:
    plans = [plans_in_file_order(WALK, Share(3, rank, 1)) for rank in range(3)]
    assert {len(part) for part in plans} == {2}
    assert all(len(plan.micro_batches) == 1 for part in plans for plan in part)
    rows = [row for part in plans for plan in part for pack in plan.micro_batches[0] for row in pack]
    assert sorted(rows) == list(range(7))
    assert len(StepBatchLoader(StepBatchDataset(STORES, PAD), plans[0], 0)) == 2
