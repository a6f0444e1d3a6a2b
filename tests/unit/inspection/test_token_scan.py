from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from surogate.batches import TokenRow
from surogate.data.row_store import RowStore
from surogate.inspection import token_scan
from surogate.inspection.token_scan import TokenKinds, scan


def a_row(ids: list[int], supervised: str) -> TokenRow:
    """A row whose supervised tokens are marked with x."""
    return TokenRow(np.array(ids, dtype=np.int32), np.array([mark == "x" for mark in supervised]))


@pytest.fixture
def kinds(llama3: Any) -> TokenKinds:
    return TokenKinds(llama3, llama3.eos_token_id)


@pytest.fixture(scope="module")
def ids(llama3: Any) -> dict[str, int]:
    return {"bos": llama3.bos_token_id, "eot": llama3.eos_token_id, "header": 1, "word": 50, "beyond": len(llama3)}


@pytest.fixture
def store(ids: dict[str, int]) -> RowStore:
    bos, eot, header, word = ids["bos"], ids["eot"], ids["header"], ids["word"]
    return RowStore.build(
        [
            a_row([bos, word, word, eot, word, word, eot], "  xx xx"),  # two turns that end
            a_row([bos, bos, word, word, word], "   xx"),  # BOS twice, and a turn that was cut
            a_row([word, bos, word, eot, bos], "  xx "),  # BOS inside, twice; the second closes the row
            a_row([bos, word, eot, word, header], "  x x"),  # one turn ends with eot, one with another special token
            a_row([bos, ids["beyond"], word, eot], "xxx "),  # a first token is no target; its end is not supervised
            a_row([bos, word, eot, word], "xxxx"),  # all of it supervised, as with loss_scale: all
        ]
    )


def check(result: Any) -> None:
    assert (result.rows, result.tokens) == (6, 30)
    assert (result.turns, result.ended_turns, result.ended_rows) == (8, 6, 2)
    assert (result.rows_with_bos, result.double_bos, result.bos_inside, result.beyond) == (5, 1, 1, 1)
    assert result.special_inside == 5  # all rows but the one with the id beyond
    assert result.examples == {"open_turn": 1, "double_bos": 1, "bos_inside": 2, "beyond": 4, "special_inside": 0}


def test_everything_is_counted_where_it_stands(store: RowStore, kinds: TokenKinds) -> None:
    check(scan(store, kinds))


@pytest.mark.parametrize("size", [1, 7, 12])
def test_counts_do_not_depend_on_the_blocks(
    store: RowStore, kinds: TokenKinds, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(token_scan, "_TOKENS_PER_BLOCK", size)
    check(scan(store, kinds))


def test_only_the_chosen_rows_are_looked_at(store: RowStore, kinds: TokenKinds) -> None:
    result = scan(store, kinds, np.array([1, 4]))
    assert (result.rows, result.turns, result.double_bos, result.bos_inside) == (2, 2, 1, 0)
    assert result.examples == {"open_turn": 1, "double_bos": 1, "beyond": 4, "special_inside": 1}


def test_a_bos_that_opens_every_turn_is_not_counted(smollm2: Any) -> None:
    kinds = TokenKinds(smollm2, smollm2.eos_token_id)
    rows = [a_row([smollm2.bos_token_id] * 3, "   ")]
    result = scan(RowStore.build(rows), kinds)
    assert not result.puts_bos
    assert result.double_bos == result.bos_inside == 0


def test_unknown_tokens_are_counted_unless_their_token_has_another_meaning(train_bpe: Any) -> None:
    rows = RowStore.build([a_row([2, 2, 50], "   ")])
    tokenizer = train_bpe(["<s>", "</s>", "<unk>"], eos="</s>", unk_token="<unk>")
    assert scan(rows, TokenKinds(tokenizer, None)).unknown == 2
    shared = train_bpe(["<s>", "</s>", "<unk>"], eos="<unk>", unk_token="<unk>")
    assert scan(rows, TokenKinds(shared, None)).unknown == 0
