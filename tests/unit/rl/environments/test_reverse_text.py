from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from surogate.errors import DataError
from surogate.rl.environments.reverse_text import ReverseTextArgs, ReverseTextEnvironment, similarity


def texts(**args: object) -> list[str]:
    environment = ReverseTextEnvironment("reverse", ReverseTextArgs(**args))
    return [environment.example(index).columns["text"] for index in range(len(environment))]


def test_the_reward_is_the_similarity_to_the_reversed_text():
    environment = ReverseTextEnvironment("reverse", ReverseTextArgs())
    example = environment.example(0)
    reference = environment.reference(example)
    assert reference == example.columns["text"][::-1]
    rewards = asyncio.run(environment.rewards([reference, f" {reference}\n", reference[:-2], "", "%%%"], example))
    assert rewards[:2] == [1.0, 1.0]
    assert 0.8 < rewards[2] < 1.0
    assert rewards[3:] == [0.0, 0.0]


def test_the_similarity_is_twice_the_common_part_over_both():
    assert similarity("abcd", "abxd") == pytest.approx(2 * 3 / 8)
    assert similarity("I say: <reversed_text>cba</reversed_text>.", "cba") == 1.0
    assert similarity("<reversed_text>cba", "cba") == 1.0


def test_an_endless_answer_earns_nothing_and_costs_no_time():
    assert similarity("ab" * 200_000, "abc") == 0.0


def test_the_splits_share_no_text():
    assert not set(texts()) & set(texts(split="held_out", seed=5))
    assert len(texts(split="held_out", num_examples=60)) == 60


def test_texts_have_the_number_of_words_that_was_asked_for():
    assert {len(text.split()) for text in texts(words=[1, 3])} == {1, 2, 3}


def test_texts_can_come_from_a_file(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"line": "text {i}"}}\n' for i in range(50)))
    both = texts(path=str(path), text_field="line") + texts(path=str(path), text_field="line", split="held_out")
    assert sorted(both) == sorted(f"text {i}" for i in range(50))
    with pytest.raises(DataError, match=r"rows.jsonl:1: there is no text in 'text'; the columns are line"):
        texts(path=str(path))


def test_words_must_be_a_range():
    with pytest.raises(ValueError, match="fewest, most"):
        ReverseTextArgs(words=[5, 2])
