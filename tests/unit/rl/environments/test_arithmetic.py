from __future__ import annotations

import asyncio

import pytest

from surogate.rl.environments.arithmetic import (
    ArithmeticArgs,
    ArithmeticEnvironment,
    Question,
    first_number,
    last_number,
)


def made(**args: object) -> ArithmeticEnvironment:
    return ArithmeticEnvironment("sums", ArithmeticArgs(**args))


def questions(environment: ArithmeticEnvironment) -> list[str]:
    return [environment.example(index).columns["question"] for index in range(len(environment))]


def reward(environment: ArithmeticEnvironment, completion: str, index: int = 0) -> float:
    return asyncio.run(environment.rewards([completion], environment.example(index)))[0]


def test_the_plain_prompt_shows_three_solved_examples():
    example = made().example(0)
    question = example.columns["question"]
    assert example.prompt == f"3 + 4 = 7\n9 - 2 = 7\n2 * 3 = 6\n{question} ="
    assert made().stop == ("\n",)


def test_the_chat_prompt_is_a_question():
    environment = made(prompt="chat")
    (message,) = environment.example(0).prompt
    assert message["role"] == "user"
    assert environment.example(0).columns["question"] in message["content"]
    assert environment.stop == ()


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"operations": ["+", "-", "*"], "held_out_fraction": 0.5},
        {"operations": ["+", "*"], "terms": [2, 3]},
        {"digits": [1, 4], "terms": 3, "num_examples": 3000},
    ],
)
def test_the_splits_share_no_question_whatever_the_seeds(args: dict):
    train, held_out = made(seed=1, **args), made(seed=2, split="held_out", **args)
    assert questions(train) and questions(held_out)
    sides = [{Question.key.fget(question) for question in made._questions} for made in (train, held_out)]
    assert not sides[0] & sides[1]


def test_the_mirror_of_a_sum_is_in_the_same_split():
    train = set(questions(made()))
    for question in train:
        a, _, b = question.split()
        assert f"{b} + {a}" in train


def test_the_solved_examples_are_never_asked():
    everything = set()
    for split in ("train", "held_out"):
        everything |= set(questions(made(split=split, operations=["+", "-", "*"])))
    assert not everything & {"3 + 4", "4 + 3", "9 - 2", "2 * 3", "3 * 2"}
    # 100 sums, 100 products and 55 differences of at least 0, without those that the prompt solves.
    assert len(everything) == 100 + 100 + 55 - 5


def test_no_question_comes_twice():
    for args in ({"num_examples": 5000}, {"digits": [1, 3], "terms": 3, "num_examples": 2000}):
        asked = questions(made(**args))
        assert len(asked) == len(set(asked))


def test_the_same_arguments_give_the_same_questions_and_another_seed_gives_others():
    assert questions(made(digits=2, seed=3)) == questions(made(digits=2, seed=3))
    assert questions(made(digits=2, seed=3)) != questions(made(digits=2, seed=4))


@pytest.mark.parametrize("operations", [["+"], ["-"], ["*"], ["+", "-", "*"]])
def test_the_answer_is_the_value_of_the_formula(operations: list[str]):
    environment = made(operations=operations, terms=[2, 4], digits=[1, 2], allow_negative=True)
    for index in range(200):
        columns = environment.example(index).columns
        assert columns["answer"] == eval(columns["question"])


def test_results_below_zero_are_asked_for_only_on_demand():
    def answers(**args: object) -> list[int]:
        environment = made(operations=["-"], **args)
        return [environment.example(index).columns["answer"] for index in range(len(environment))]

    assert min(answers()) >= 0
    assert min(answers(allow_negative=True)) < 0


def test_numbers_have_the_digits_that_were_asked_for():
    terms = {int(term) for question in questions(made(digits=[2, 3])) for term in question.split(" + ")}
    assert {len(str(term)) for term in terms} == {2, 3}


def test_only_the_right_number_is_rewarded():
    environment = made()
    answer = environment.example(0).columns["answer"]
    assert reward(environment, f" {answer}\n") == reward(environment, f"{answer}") == 1.0
    assert reward(environment, f" {answer + 1}\n") == reward(environment, "") == reward(environment, "none") == 0.0
    assert reward(environment, f" {answer}0\n") == 0.0
    assert reward(environment, f"\n{answer}") == 0.0, "the answer stands in the first line"
    assert reward(environment, environment.reference(environment.example(0))) == 1.0


def test_a_wrong_number_earns_something_only_on_demand():
    environment = made(partial_credit=0.2)
    answer = environment.example(0).columns["answer"]
    assert reward(environment, f"{answer + 1}") == pytest.approx(0.1)
    assert reward(environment, f"{answer}") == 1.0
    assert reward(environment, "none") == 0.0


def test_in_chat_the_last_number_counts():
    environment = made(prompt="chat")
    columns = environment.example(0).columns
    assert reward(environment, f"{columns['question']} = {columns['answer']}.") == 1.0


def test_numbers_are_read_with_sign_and_fraction():
    assert (first_number("-3 apples"), first_number(" 2.50\n7"), first_number("no")) == (-3.0, 2.5, None)
    assert (last_number("3 + 4 = 7."), last_number("")) == (7.0, None)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"terms": 1}, "terms is 1"),
        ({"terms": [3, 2]}, "terms is"),
        ({"digits": [1, 2, 3]}, "a range has two numbers"),
        ({"operations": []}, "operations is empty"),
        ({"partial_credit": 1.0}, "below 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused(args: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ArithmeticArgs(**args)
