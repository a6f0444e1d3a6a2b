from __future__ import annotations

import asyncio

import pytest

from surogate.config.parts_grpo import EnvSpec
from surogate.errors import ConfigError
from surogate.rl.env_check import ScriptedPolicy
from surogate.rl.environments.registry import build_environment, check_environment

FILE = """
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
    ],
)
def test_a_class_that_cannot_serve_is_told_in_a_sentence(place, name, args, said):
    with pytest.raises(ConfigError, match=said):
        build_environment(EnvSpec(id=f"{place}:{name}", args=args))


def test_a_file_that_cannot_be_imported_is_told(tmp_path):
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\nclass Echo: pass\n")
    with pytest.raises(ConfigError, match="nothing_of_that_name"):
        build_environment(EnvSpec(id=f"{tmp_path}/broken.py:Echo"))
