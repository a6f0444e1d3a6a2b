from __future__ import annotations

import asyncio
import pickle
import re

import pytest

from surogate.config.parts_grpo import EnvSpec
from surogate.errors import ConfigError
from surogate.rl.env_check import ScriptedPolicy
from surogate.rl.environments.registry import build_environment, check_environment

FILE = """
from surogate.errors import ConfigError
from surogate.rl.environments.base import SingleTurnEnvironment
from surogate.rl.types import Example


class Echo(SingleTurnEnvironment):
    def __init__(self, name, words):
        super().__init__(name)
        self.words = words

    def __len__(self):
        return len(self.words)

    def example(self, index):
        return Example(id=f"{self.name}/{index}", env=self.name, prompt=self.words[index])

    async def rewards(self, completions, example):
        return [float(text == example.prompt) for text in completions]


class Nothing:
    pass


class Unfinished(SingleTurnEnvironment):
    def __len__(self):
        return 1


class Raises(Echo):
    def __init__(self, name):
        super().__init__(name, ["a"])
        {}["key"]


class Refuses(Echo):
    def __init__(self, name):
        raise ConfigError("set words to a list of words.")


class Endless(Echo):
    def __len__(self):
        return 1 / 0


class Nameless(Echo):
    def __init__(self, name):
        self.words = ["a"]
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "echo.py").write_text(FILE)
    return f"{tmp_path}/echo.py"


def test_a_class_of_a_file_is_an_environment(place):
    spec = EnvSpec(id=f"{place}:Echo", name="echo", args={"words": ["a", "b"]})
    check_environment(spec)
    environment = build_environment(spec)
    assert len(environment) == 2
    rollouts = asyncio.run(environment.rollouts(environment.example(1), 2, ScriptedPolicy(["b", "c"])))
    assert [rollout.reward for rollout in rollouts] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("Echo", {}, "does not take the arguments"),
        ("Echo", {"words": []}, "has no prompts"),
        ("Nothing", {}, "Nothing is no Environment"),
        ("Gone", {}, "has no function 'Gone'"),
        ("Unfinished", {}, "Unfinished lacks example, rewards, which it must define"),
        ("Raises", {}, r"Raises cannot be built: KeyError: 'key' \(line \d+: {}\[\"key\"\]\)\.$"),
        ("Refuses", {}, "^set words to a list of words.$"),
        ("Endless", {"words": ["a"]}, r"Endless has no length: ZeroDivisionError.* \(line \d+: return 1 / 0\)"),
        ("Nameless", {}, r"its name is None and must be 'mine'.*super\(\).__init__\(name\)"),
    ],
)
def test_a_class_that_cannot_serve_is_told_in_a_sentence(place, name, args, said):
    with pytest.raises(ConfigError, match=said):
        build_environment(EnvSpec(id=f"{place}:{name}", name="mine", args=args))


def test_a_file_that_cannot_be_imported_is_told(tmp_path):
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\nclass Echo: pass\n")
    with pytest.raises(ConfigError, match=r"nothing_of_that_name' \(line 1: import nothing_of_that_name\)\.$"):
        build_environment(EnvSpec(id=f"{tmp_path}/broken.py:Echo"))


@pytest.mark.parametrize("line", ["1 / 0", "raise SystemExit(3)", "open('/nowhere')"])
def test_whatever_a_file_raises_is_told_with_its_line(tmp_path, line):
    (tmp_path / "raises.py").write_text(f"class Echo: pass\n{line}\n")
    with pytest.raises(ConfigError, match=rf"raises.py cannot be imported: .*\(line 2: {re.escape(line)}\)\.$"):
        build_environment(EnvSpec(id=f"{tmp_path}/raises.py:Echo"))


def test_a_file_may_have_dataclasses_and_neighbours(tmp_path):
    (tmp_path / "neighbour_of_echo.py").write_text("words = ['a', 'b', 'c']\n")
    (tmp_path / "with-neighbour.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass, KW_ONLY\n"
        "from neighbour_of_echo import words\n"
        + FILE
        + "@dataclass\nclass Options:\n    _: KW_ONLY\n    words: list\n"
        + "class Mine(Echo):\n    def __init__(self, name):\n"
        + "        super().__init__(name, Options(words=words).words)\n"
    )
    environment = build_environment(EnvSpec(id=f"{tmp_path}/with-neighbour.py:Mine"))
    assert len(environment) == 3 and pickle.loads(pickle.dumps(environment)).words == ["a", "b", "c"]
