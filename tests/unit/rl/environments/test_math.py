from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from surogate.errors import DataError
from surogate.rl.environments.base import RewardError
from surogate.rl.environments.math import MathArgs, MathEnvironment
from surogate.rl.environments.word_problems import word_problems

TELLING = {"more", "fills", "buys", "shares", "together", "Wednesday", "saves", "train"}


def score(environment: MathEnvironment, *completions: str) -> list[float]:
    async def run() -> list[float]:
        try:
            return await environment.rewards(list(completions), environment.example(0))
        finally:
            await environment.close()

    return asyncio.run(run())


@pytest.fixture
def problem(tmp_path: Path):
    def make(answer: object, **args: object) -> MathEnvironment:
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps({"problem": "?", "answer": answer}) + "\n")
        return MathEnvironment("math", MathArgs(path=str(path), **args))

    return make


def test_answers_are_compared_as_mathematics(problem):
    right = [r"So it is $\frac{1}{2}$.", r"\boxed{0.5}", "first 3, then 0.5", r"\boxed{\dfrac{2}{4}}", "1/2"]
    wrong = [r"\boxed{0.25}", "0.5 or rather 3", "", r"\boxed{", r"0.5, no: \boxed{2}"]
    assert score(problem(r"\frac{1}{2}"), *right, *wrong) == [1.0] * len(right) + [0.0] * len(wrong)


def test_an_answer_after_a_solution_is_found(problem):
    environment = problem("He has 2 * 4 = <<2*4=8>>8.\n#### 1,024")
    assert environment.example(0).columns["answer"] == "1,024"
    assert score(environment, r"\boxed{1024}", "1024", "1,024", "8") == [1.0, 1.0, 1.0, 0.0]


def test_a_box_can_be_required(problem):
    assert score(problem("7", require_boxed=True), "7", r"\boxed{7}") == [0.0, 1.0]


def test_a_completion_that_cannot_be_judged_in_time_is_wrong_and_the_next_is_judged(problem):
    environment = problem("7", timeout_seconds=1.0)
    assert score(environment, r"\boxed{9^{9^{9^{9}}}}", "7") == [0.0, 1.0]


def test_a_reference_that_is_no_mathematics_is_an_error(problem):
    with pytest.raises(RewardError, match="cannot be read as a number or LaTeX"):
        score(problem("$$"), "7")


def test_an_answer_that_is_missing_is_refused_with_its_row(problem):
    with pytest.raises(DataError, match="row 1 has no answer in 'gold'"):
        problem("7", answer_field="gold")
    with pytest.raises(DataError, match="row 1 has no answer in 'answer'"):
        problem(" ")


def test_the_built_in_problems_are_scored_right_by_their_references():
    environment = MathEnvironment("math", MathArgs(num_examples=20))
    assert "boxed" in environment.example(0).prompt[0]["content"]

    async def run() -> list[float]:
        examples = [environment.example(index) for index in range(len(environment))]
        rewards = [(await environment.rewards([environment.reference(e)], e))[0] for e in examples]
        await environment.close()
        return rewards

    assert asyncio.run(run()) == [1.0] * 20


def test_without_a_system_prompt_there_is_only_the_problem():
    assert len(MathEnvironment("math", MathArgs(system_prompt="", num_examples=1)).example(0).prompt) == 1


def test_word_problems_of_the_two_splits_have_no_computation_in_common():
    def bare(problem: tuple[str, int]) -> tuple[str, ...]:
        """Numbers and the words that tell a template, without names and things."""
        words = problem[0].replace(".", "").split()
        return tuple(word for word in words if word.isdigit() or word in TELLING)

    train, held_out = word_problems(300, 0, "train", 0.5), word_problems(300, 1, "held_out", 0.5)
    assert len(train) == len(held_out) == 300
    assert not set(map(bare, train)) & set(map(bare, held_out))
    assert word_problems(50, 0, "train", 0.5) == train[:50]


def test_word_problems_have_natural_answers():
    for text, answer in word_problems(2000, 3, "train", 0.2):
        assert answer >= 0, text
        if "equally" in text:
            whole, friends = (int(word) for word in text.split() if word.isdigit())
            assert answer * friends == whole


def test_completions_are_judged_by_as_many_processes_as_there_are_cpus(problem, monkeypatch):
    monkeypatch.setattr("surogate.rl.environments.math.usable_cpus", lambda: 3)
    environment = problem("7")
    assert environment._worker._slots._value == 3
