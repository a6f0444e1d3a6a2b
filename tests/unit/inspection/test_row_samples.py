from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from surogate.batches import TokenRow
from surogate.data.row_store import RowStore
from surogate.inspection.row_samples import MAX_SHOWN_TOKENS, RowSample, sample_rows, visible
from surogate.inspection.token_scan import TokenKinds


def sample(tokenizer: Any, ids: list[int], supervised: int = 0) -> RowSample:
    """The sample of one row whose last tokens are supervised."""
    mask = np.arange(len(ids)) >= len(ids) - supervised
    store = RowStore.build([TokenRow(np.array(ids, dtype=np.int32), mask)])
    return sample_rows("rows", store, 1, tokenizer, TokenKinds(tokenizer, None))[0]


@pytest.mark.parametrize(
    "text", ["plain words, two lines\n\tand a tab", "Grüße 👩‍🚀 漢字かな 🤗", "  leading  spaces "]
)
def test_the_pieces_are_the_text_and_none_is_half_a_character(smollm2: Any, text: str) -> None:
    ids = smollm2(text)["input_ids"]
    pieces = sample(smollm2, ids).pieces
    assert "".join(piece.text for piece in pieces) == text
    assert [token_id for piece in pieces for token_id in piece.token_ids] == ids
    assert [piece.position for piece in pieces] == np.cumsum([0, *(len(p.token_ids) for p in pieces[:-1])]).tolist()


def test_supervised_and_special_tokens_are_told_apart(smollm2: Any) -> None:
    row = sample(smollm2, smollm2("<|im_start|>Paris<|im_end|>")["input_ids"], supervised=2)
    assert [(piece.text, piece.special, piece.supervised) for piece in row.pieces] == [
        ("<|im_start|>", True, False),
        ("Paris", False, True),
        ("<|im_end|>", True, True),
    ]
    assert (row.num_tokens, row.num_loss_tokens, row.origin) == (3, 2, "row 0")


def test_half_a_character_at_the_end_is_shown_as_what_it_is(smollm2: Any) -> None:
    ids = smollm2("漢")["input_ids"]
    assert len(ids) > 1
    assert [piece.text for piece in sample(smollm2, ids[:-1]).pieces] == ["\ufffd"]


def test_an_id_without_a_token_is_shown(smollm2: Any) -> None:
    beyond = len(smollm2)
    assert sample(smollm2, [beyond, 50]).pieces[0].text == f"⟨no token {beyond}⟩"


def test_a_long_row_is_shown_without_its_middle(smollm2: Any) -> None:
    ids = smollm2("word " * 2000)["input_ids"]
    pieces = sample(smollm2, ids, supervised=1).pieces
    shown = [token_id for piece in pieces for token_id in piece.token_ids]
    assert len(shown) == MAX_SHOWN_TOKENS
    assert [piece.text for piece in pieces if not piece.token_ids] == [f"\n… {len(ids) - len(shown):,} tokens …\n"]
    assert pieces[-1].supervised and pieces[-1].position == len(ids) - 1


def test_samples_are_spread_and_never_more_than_there_are(smollm2: Any) -> None:
    store = RowStore.build([TokenRow(np.array([50, 51], dtype=np.int32), np.array([False, True]))] * 10)
    kinds = TokenKinds(smollm2, None)
    rows = {count: [s.row for s in sample_rows("rows", store, count, smollm2, kinds)] for count in (0, 1, 3, 10, 99)}
    assert rows == {0: [], 1: [0], 3: [0, 3, 6], 10: list(range(10)), 99: list(range(10))}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", "␛[31mred␇"),
        ("a\r\nb\tc", "a␍\nb\tc"),
        ("\u202egnp.exe\u2066", "⟨U+202E⟩gnp.exe⟨U+2066⟩"),
        ("\x7f\x9b\u2028\ufeff\ud800", "␡⟨U+009B⟩⟨U+2028⟩⟨U+FEFF⟩⟨U+D800⟩"),
        ("नमस्ते می‌خواهم 👩‍🚀", "नमस्ते می‌خواهم 👩‍🚀"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_as_a_sign(text: str, shown: str) -> None:
    assert visible(text) == shown
