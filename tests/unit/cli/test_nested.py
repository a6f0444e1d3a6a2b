"""Stand-in classes here are named by class_path in the configurations."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from surogate.cli.nested import check_names, explain
from surogate.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    rank: int = 1


@dataclass(frozen=True)
class Spec:
    path: str = ""
    inner: Inner = Inner()


class Model:
    def __init__(self, lora: Inner = Inner(), other: Any = None) -> None: ...


class Data:
    def __init__(self, datasets: list[Spec] = []) -> None: ...  # noqa: B006


class Open:
    def __init__(self, a: int = 0, **kwargs: Any) -> None: ...


HERE = "nested_stand_ins"

GOOD = f"""\
trainer:
  max_steps: 3
  callbacks:
    - class_path: {HERE}.Model
      init_args: {{lora: {{rank: 1}}}}
model:
  class_path: {HERE}.Model
  init_args:
    lora: {{rank: 2}}
data:
  class_path: {HERE}.Data
  init_args:
    datasets:
      - path: a
        inner: {{rank: 1}}
"""


@pytest.fixture(autouse=True)
def stand_ins_can_be_imported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])


@pytest.fixture
def problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def lines(text: str, *options: str) -> list[str]:
        (tmp_path / "n.yaml").write_text(text)
        try:
            check_names("fit", ["--config", "n.yaml", *options])
        except ConfigError as error:
            first, *rest = str(error).splitlines()
            return rest or [first]
        return []

    return lines


def test_a_good_configuration_has_no_problem(problems):
    assert problems(GOOD, "--trainer.max_epochs", "3", "--model.init_args.lora.rank=3", "--model.lora.rank", "4") == []


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("max_steps", "max_step", "n.yaml:2: trainer.max_step is not a key. Did you mean trainer.max_steps?"),
        ("trainer:", "trianer:", "n.yaml:1: trianer is not a key. Did you mean trainer?"),
        ("  init_args:\n    lora", "  initargs:\n    lora", "n.yaml:8: model.initargs is not a key. Did you mean"),
        (
            "rank: 2",
            "rnk: 2",
            "n.yaml:9: model.init_args.lora.rnk is not a key. Did you mean model.init_args.lora.rank?",
        ),
        ("lora: {rank: 2}", "lorra: {}", "n.yaml:9: model.init_args.lorra is not a key. Did you mean"),
        ("- path: a", "- pth: a", "n.yaml:14: data.init_args.datasets[0].pth is not a key. Did you mean"),
        ("inner: {rank: 1}", "inner: {rnk: 1}", "n.yaml:15: data.init_args.datasets[0].inner.rnk is not a key."),
        ("{lora: {rank: 1}}", "{lra: 1}", "n.yaml:5: trainer.callbacks[0].init_args.lra is not a key."),
    ],
)
def test_a_misspelt_key_names_its_neighbour_at_any_depth(problems, old, new, sentence):
    found = problems(GOOD.replace(old, new))
    assert len(found) == 1
    assert found[0].startswith(sentence)


def test_all_problems_of_files_and_options_come_together(problems):
    found = problems(GOOD.replace("max_steps", "max_step"), "--model.init_args.lora.rnk", "3", "--data.dataset", "[]")
    assert [line.split(" is not")[0] for line in found] == [
        "n.yaml:2: trainer.max_step",
        "command line: model.init_args.lora.rnk",
        "command line: data.init_args.dataset",
    ]


def test_a_later_file_is_checked_against_the_class_of_an_earlier_one(problems, tmp_path):
    (tmp_path / "more.yaml").write_text("model:\n  init_args:\n    lora: {rnk: 3}\n")
    assert problems(GOOD, "--config", "more.yaml")[0].startswith("more.yaml:3: model.init_args.lora.rnk is not a key.")


def test_a_class_that_takes_any_argument_is_left_alone(problems):
    assert problems(f"model:\n  class_path: {HERE}.Open\n  init_args: {{b: 1}}\n") == []


def test_a_class_that_cannot_be_found_is_left_to_the_parser(problems):
    assert problems("model:\n  class_path: no_such_package.Model\n  init_args: {b: 1}\n") == []


def test_a_duplicate_key_is_refused(problems):
    assert problems("trainer:\n  max_steps: 1\n  max_steps: 2\n")[0].startswith(
        "n.yaml:3: trainer.max_steps is set twice"
    )


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"^gone.yaml cannot be read"):
        check_names("fit", ["--config=gone.yaml"])


def test_a_wrong_value_deep_inside_is_one_sentence():
    report = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'LightningModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'surogate.modes.SftModule':
        Parser key "lora.rank":
          Expected a <class 'int'>. Got value: many
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'class_path': 'surogate.modes.SftModule'}"""
    assert explain(report) == "model.init_args.lora.rank must be int, got 'many'."


def test_a_class_that_does_not_exist_is_one_sentence():
    report = """Parser key "model":
  Does not validate against any of the Union subtypes
  Errors:
    - Problem with given class_path 'surogate.modes.Sftt':
        module 'surogate.modes' has no attribute 'Sftt'
    - Expected a <class 'NoneType'>"""
    assert explain(report) == (
        "model: surogate.modes.Sftt cannot be used: module 'surogate.modes' has no attribute 'Sftt'."
    )


def test_other_reports_are_kept_on_one_line():
    assert explain("the following arguments are required:\n  fit.data") == (
        "the following arguments are required: fit.data"
    )
