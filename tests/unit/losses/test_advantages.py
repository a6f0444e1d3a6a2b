"""Advantages of a group: by hand, and what a custom function may return."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from surogate.config.parts_grpo import AdvantageSpec
from surogate.errors import ConfigError
from surogate.losses.advantages import group_advantages, load_advantage

REWARDS = [0.0, 1.0, 2.0, 5.0]
LENGTHS = [1, 1, 2, 4]


@pytest.mark.parametrize(
    ("kind", "by_length", "expected"),
    [
        ("default", False, [-2.0, -1.0, 0.0, 3.0]),
        # (0 + 1 + 2 x 2 + 4 x 5) / 8 = 25 / 8
        ("default", True, [-3.125, -2.125, -1.125, 1.875]),
        # the deviation over G - 1 is sqrt(14 / 3)
        ("std", False, [value / ((14 / 3) ** 0.5 + 1e-4) for value in (-2.0, -1.0, 0.0, 3.0)]),
        ("std", True, [value / ((14 / 3) ** 0.5 + 1e-4) for value in (-3.125, -2.125, -1.125, 1.875)]),
        ("leave_one_out", False, [0 - 8 / 3, 1 - 7 / 3, 2 - 6 / 3, 5 - 3 / 3]),
        ("leave_one_out", True, [0 - 25 / 7, 1 - 24 / 7, 2 - 21 / 6, 5 - 5 / 4]),
    ],
)
def test_each_type_by_hand(kind: Any, by_length: bool, expected: list[float]) -> None:
    spec = AdvantageSpec(type=kind, length_weighted_mean=by_length)
    assert group_advantages(REWARDS, LENGTHS, spec) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("kind", ["default", "std", "leave_one_out"])
def test_equal_rewards_a_lone_rollout_and_no_rollout_teach_nothing(kind: Any, by_length: bool) -> None:
    spec = AdvantageSpec(type=kind, length_weighted_mean=by_length)
    assert group_advantages([0.1] * 3, [3, 7, 11], spec) == [0.0, 0.0, 0.0]
    assert group_advantages([0.7], [3], spec) == [0.0]
    assert group_advantages([], [], spec) == []


@pytest.mark.parametrize("kind", ["default", "std", "leave_one_out"])
def test_completions_without_a_token_are_weighted_alike(kind: Any) -> None:
    weighted = group_advantages([0.0, 1.0], [0, 0], AdvantageSpec(type=kind, length_weighted_mean=True))
    assert weighted == group_advantages([0.0, 1.0], [0, 0], AdvantageSpec(type=kind))


def test_a_rollout_whose_others_have_no_token_is_worth_nothing() -> None:
    spec = AdvantageSpec(type="leave_one_out", length_weighted_mean=True)
    assert group_advantages([0.0, 1.0], [0, 5], spec) == [-1.0, 0.0]


def _custom(path: Path, body: str, **kwargs: Any) -> AdvantageSpec:
    file = path / "mine.py"
    file.write_text(f"calls = []\ndef scaled(rewards_NG, lengths_NG, factor=1.0):\n    {body}\n")
    return AdvantageSpec(type="custom", import_path=f"{file}:scaled", kwargs=kwargs)


def test_a_custom_function_of_a_file_gets_the_group_and_its_arguments(tmp_path: Path) -> None:
    spec = _custom(tmp_path, "return (rewards_NG - lengths_NG.mean(-1, keepdims=True)) * factor", factor=10.0)
    assert group_advantages([1.0, 4.0], [1, 3], spec) == [-10.0, 20.0]


def test_a_custom_function_of_a_module_may_return_a_tensor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "advantage_of_a_user.py").write_text(
        "import torch\n"
        "def ranks(rewards_NG, lengths_NG):\n"
        "    return torch.tensor(rewards_NG).argsort(-1).argsort(-1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec = AdvantageSpec(type="custom", import_path="advantage_of_a_user:ranks")
    assert group_advantages([0.3, 0.9, 0.1], [1, 1, 1], spec) == [1.0, 2.0, 0.0]


def test_a_custom_function_is_imported_once_and_cannot_change_the_rewards(tmp_path: Path) -> None:
    body = "calls.append(1); rewards_NG *= 0; return rewards_NG + len(calls)"
    spec = _custom(tmp_path, body)
    rewards = np.array([1.0, 2.0])
    assert load_advantage(spec)(rewards.tolist(), [1, 1]) == [1.0, 1.0]
    assert load_advantage(spec)(rewards.tolist(), [1, 1]) == [2.0, 2.0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return rewards_NG[0]", "must return 1 x 2 numbers, as many as it gets rewards, and returned 2"),
        ("return rewards_NG.mean()", "must return 1 x 2 numbers, as many as it gets rewards, and returned one"),
        ("return rewards_NG * float('nan')", "returned nan for the rewards"),
        ("return [['good', 'bad']]", "not an array of numbers"),
        ("return None", "must return 1 x 2 numbers"),
    ],
)
def test_a_custom_function_that_returns_something_else_is_refused(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        group_advantages([1.0, 4.0], [1, 3], _custom(tmp_path, body))


def test_a_tensor_with_a_graph_is_refused(tmp_path: Path) -> None:
    spec = _custom(tmp_path, "import torch; return torch.ones(1, 2, requires_grad=True)")
    with pytest.raises(ConfigError, match="not an array of numbers"):
        group_advantages([1.0, 4.0], [1, 3], spec)


@pytest.mark.parametrize(
    ("import_path", "message"),
    [
        (None, "needs advantage.import_path"),
        ("mine.scaled", "write `package.module:function` or `file.py:function`"),
        ("no/such/file.py:scaled", "there is no file 'no/such/file.py'"),
        ("no_such_package.module:scaled", "there is no no_such_package"),
        ("surogate.no_such_module:scaled", "there is no surogate.no_such_module"),
        ("math:no_such_function", "math has no function no_such_function"),
    ],
)
def test_a_custom_function_that_cannot_be_found_is_refused(import_path: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_advantage(AdvantageSpec(type="custom", import_path=import_path))


def test_whatever_a_custom_file_or_function_raises_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "raises.py"
    file.write_text("import sys\nsys.exit('at once')\ndef scaled(rewards_NG, lengths_NG): ...\n")
    with pytest.raises(ConfigError, match=r"raises.py cannot be imported: SystemExit: at once \(line 2: sys.exit"):
        load_advantage(AdvantageSpec(type="custom", import_path=f"{file}:scaled"))
    spec = _custom(tmp_path, "return rewards_NG / factor[0]", factor=[])
    with pytest.raises(ConfigError, match=r"failed: IndexError: .*\(line \d+: .*return rewards_NG / factor\[0\]\)\."):
        group_advantages([1.0, 4.0], [1, 3], spec)


def test_a_module_that_cannot_be_imported_is_told_with_its_line(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "broken_advantage.py").write_text("\nfrom nothing_of_that_name import ranks\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"broken_advantage cannot be imported: ModuleNotFoundError.*\(line 2: from"):
        load_advantage(AdvantageSpec(type="custom", import_path="broken_advantage:ranks"))


def test_a_file_of_dataclasses_with_a_neighbour_is_imported(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_advantages.py").write_text("factor = 3.0\n")
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass, KW_ONLY\n"
        "from neighbour_of_advantages import factor\n"
        "@dataclass\n"
        "class Scale:\n"
        "    _: KW_ONLY\n"
        "    by: float = factor\n"
        "def scaled(rewards_NG, lengths_NG):\n"
        "    return rewards_NG * Scale().by\n"
    )
    spec = AdvantageSpec(type="custom", import_path=f"{tmp_path}/mine.py:scaled")
    assert group_advantages([1.0, 2.0], [1, 1], spec) == [3.0, 6.0]
