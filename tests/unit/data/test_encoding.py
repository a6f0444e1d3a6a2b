from __future__ import annotations

import numpy as np
import pytest

from surogate.batches import TokenRow
from surogate.config.parts import ChatSpec
from surogate.data.encoding import EncodedSource, LengthLimit, encode_source, held_out
from surogate.data.formats import Conversation
from surogate.errors import ConfigError, DataError


def conversation(number: int, text: str = "") -> Conversation:
    return Conversation([{"role": "user", "content": text or str(number)}], origin=f"rows.jsonl:{number}")


def row(length: int, supervised_from: int) -> TokenRow:
    return TokenRow(np.arange(length, dtype=np.int32), np.arange(length) >= supervised_from)


def encode(
    rendered: list[list[TokenRow]], strategy: str = "delete", max_length: int = 8, max_bad: float = 1.0
) -> EncodedSource:
    rows = iter(rendered)
    conversations = [conversation(i + 1) for i in range(len(rendered))]
    return encode_source("set", conversations, lambda _: next(rows), LengthLimit(max_length, strategy), max_bad)


def test_a_row_longer_than_max_length_is_left_out_and_counted() -> None:
    source = encode([[row(8, 1)], [row(9, 1)], [row(10, 1)]])
    assert len(source.rows) == 1
    assert source.too_long == ["rows.jsonl:2", "rows.jsonl:3"]
    assert "2 rows longer than max_length 8 left out (first: rows.jsonl:2)" in source.describe()


@pytest.mark.parametrize(("strategy", "kept"), [("right", range(8)), ("left", range(2, 10))])
def test_a_row_longer_than_max_length_is_cut_and_counted(strategy: str, kept: range) -> None:
    source = encode([[row(10, 1)]], strategy)
    assert source.rows[0][0].input_ids.tolist() == list(kept)
    assert len(source.rows[0][0].loss_mask) == 8
    assert f"cut on the {strategy}" in source.describe()


def test_a_row_whose_supervised_tokens_are_cut_away_is_bad() -> None:
    source = encode([[row(10, 9)], [row(5, 2)]], "right")
    assert source.bad == ["rows.jsonl:1"]
    assert len(source.rows) == 1


def test_a_row_that_supervises_only_its_first_token_is_bad() -> None:
    only_first = TokenRow(np.arange(3, dtype=np.int32), np.array([True, False, False]))
    assert encode([[only_first], [row(4, 1)]]).bad == ["rows.jsonl:1"]


def test_one_conversation_may_give_several_rows() -> None:
    source = encode([[row(3, 1), row(5, 4), row(4, 4)]])
    assert [len(r) for r in source.rows[0]] == [3, 5]
    assert (source.num_rendered, len(source.bad)) == (3, 1)


def test_too_many_bad_rows_are_refused_with_count_and_first_example() -> None:
    rendered = [[row(4, 1)], [row(4, 4)], [row(4, 4)]]
    assert len(encode(rendered, max_bad=2 / 3).rows) == 1
    with pytest.raises(DataError, match=r"2 of 3 rows supervise no token, the first is rows\.jsonl:2"):
        encode(rendered, max_bad=0.5)


def test_a_source_of_which_nothing_is_left_is_refused() -> None:
    with pytest.raises(DataError, match=r"no row is left.*1 rows longer than max_length 8"):
        encode([[row(20, 1)]])


def test_an_error_of_the_renderer_names_the_row() -> None:
    def refuse(_: Conversation) -> list[TokenRow]:
        raise DataError("the template refuses it")

    with pytest.raises(DataError, match=r"rows\.jsonl:4: the template refuses it"):
        encode_source("set", [conversation(4)], refuse, LengthLimit(8, "delete"), 0.0)


def test_a_limit_that_no_pack_can_hold_is_refused() -> None:
    assert LengthLimit.of(ChatSpec(), 64) == LengthLimit(64, "delete")
    assert LengthLimit.of(ChatSpec(max_length=32, truncation_strategy="left"), 64) == LengthLimit(32, "left")
    with pytest.raises(ConfigError, match="max_length 65 is above sequence_len 64"):
        LengthLimit.of(ChatSpec(max_length=65), 64)
    with pytest.raises(ConfigError, match="split is for plain text"):
        LengthLimit.of(ChatSpec(truncation_strategy="split"), 64)


@pytest.mark.parametrize(("count", "fraction", "expected"), [(2, 1e-9, 1), (3, 1 - 1e-9, 2), (1, 0.5, 0)])
def test_at_least_one_is_held_out_but_never_all(count: int, fraction: float, expected: int) -> None:
    assert held_out([conversation(i) for i in range(count)], fraction, seed=1).sum() == expected


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_the_asked_share_is_held_out(fraction: float) -> None:
    assert held_out([conversation(i) for i in range(1000)], fraction, seed=1).mean() == pytest.approx(
        fraction, abs=0.05
    )


def test_equal_conversations_of_two_sources_fall_on_the_same_side() -> None:
    first, second = [conversation(i) for i in range(60)], [conversation(i) for i in range(30, 300)]
    for seed in range(20):
        assert np.array_equal(held_out(first, 0.2, seed)[30:], held_out(second, 0.2, seed)[:30])


def test_a_ratio_of_zero_holds_nothing_out() -> None:
    assert not held_out([conversation(i) for i in range(10)], 0.0, seed=1).any()


def test_equal_conversations_stay_on_one_side() -> None:
    conversations = [conversation(i, text=f"question {i % 12}") for i in range(60)]
    for seed in range(20):
        chosen = held_out(conversations, 0.2, seed)
        assert chosen.any() and not chosen.all()
        assert all(chosen[i] == chosen[i % 12] for i in range(60))


def test_a_source_of_one_repeated_conversation_is_all_trained_on() -> None:
    assert not held_out([conversation(i, text="same") for i in range(5)], 0.5, seed=1).any()


def test_the_choice_follows_the_seed_and_not_the_order() -> None:
    conversations = [conversation(i) for i in range(50)]
    chosen = held_out(conversations, 0.3, seed=1)
    assert np.array_equal(chosen, held_out(conversations[::-1], 0.3, seed=1)[::-1])
    assert not np.array_equal(chosen, held_out(conversations, 0.3, seed=2))
