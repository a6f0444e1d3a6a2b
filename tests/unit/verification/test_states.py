from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from surogate.verification.states import compare_states, load_state


def test_equal_states_have_no_difference() -> None:
    state = {"state_dict/w": torch.ones(3), "epoch": 1, "nan": torch.tensor([math.nan])}
    difference = compare_states(state, {key: value for key, value in state.items()})
    assert difference.is_none and difference.num_tensors == 2


def test_one_bit_counts_and_the_largest_difference_is_named() -> None:
    one = {"a": torch.ones(2), "b": torch.zeros(2), "c": torch.tensor(0.0)}
    other = {"a": torch.tensor([1.0, 1.5]), "b": torch.tensor([0.0, 1e-9]), "c": torch.tensor(-0.0)}
    difference = compare_states(one, other)
    assert difference.differing == ("a", "b", "c")
    assert (difference.largest, difference.where) == (0.5, "a")
    assert not difference.is_none


def test_a_missing_tensor_another_shape_and_another_position_differ() -> None:
    assert compare_states({"a": torch.ones(2)}, {}).values == ("a",)
    assert math.isnan(compare_states({"a": torch.ones(2)}, {"a": torch.ones(3)}).largest)
    assert compare_states({"ledger/step": 3}, {"ledger/step": 4}).values == ("ledger/step",)


def test_of_a_checkpoint_what_decides_how_the_run_goes_on_is_compared(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "epoch": 0,
        "global_step": 2,
        "state_dict": {"w": torch.ones(2)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
        "lr_schedulers": [{"last_epoch": 2}],
        "ChatDataModule": {"ledger": {"step": 2, "cursors": (1, 2)}},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
    }
    torch.save(state, tmp_path / "trainer.ckpt")
    assert load_state(tmp_path).keys() == {
        "epoch",
        "global_step",
        "state_dict/w",
        "optimizer_states/0/state/0/exp_avg",
        "lr_schedulers/0/last_epoch",
        "ChatDataModule/ledger/step",
        "ChatDataModule/ledger/cursors/0",
        "ChatDataModule/ledger/cursors/1",
    }


def test_the_shards_of_a_sharded_checkpoint_are_compared_file_by_file(tmp_path: Path) -> None:
    states = []
    for name, weight in (("a", 1.0), ("b", 2.0)):
        folder = tmp_path / name / "trainer.ckpt"
        folder.mkdir(parents=True)
        torch.save(
            {"global_step": 2, "optimizers": [{"state": {"w": {"step": torch.tensor(2.0)}}}]}, folder / "values.pt"
        )
        save_file({"state_dict.w": torch.full((2,), weight)}, folder / "shard-1.safetensors")
        states.append(load_state(tmp_path / name))
    assert set(states[0]) == {"global_step", "optimizers/0/state/w/step", "shards/shard-1.safetensors/state_dict.w"}
    assert compare_states(*states).differing == ("shards/shard-1.safetensors/state_dict.w",)
