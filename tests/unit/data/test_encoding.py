from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from surogate.batches import TokenRow
from surogate.config.parts import ChatSpec, DatasetSpec
from surogate.data.encoding import ConversationEncoder, Counts, Encoded, LengthLimit, content_hash, write_conversation
from surogate.data.row_writer import COLUMNS, RowWriter
from surogate.data.sources import SourceRow
from surogate.errors import ConfigError, DataError


class Kept(RowWriter):
    """Remembers what it is given."""

    def __init__(self) -> None:
        super().__init__({name: io.BytesIO() for name in COLUMNS}, np.int32)
        self.rows: list[TokenRow] = []

    def add(self, row: TokenRow) -> None:
        self.rows.append(row)
        super().add(row)


def row(length: int, supervised_from: int) -> TokenRow:
    return TokenRow(np.arange(length, dtype=np.int32), np.arange(length) >= supervised_from)


def write(rendered: list[list[TokenRow]], strategy: str = "delete", max_length: int = 8) -> tuple[Kept, Counts]:
    writer, counts = Kept(), Counts()
    for number, rows in enumerate(rendered, start=1):
        write_conversation(writer, f"rows.jsonl:{number}", Encoded(rows, 0), LengthLimit(max_length, strategy), counts)
    return writer, counts


def test_a_row_longer_than_max_length_is_left_out_and_counted() -> None:
    writer, counts = write([[row(8, 1)], [row(9, 1)], [row(10, 1)]])
    assert (len(writer.rows), writer.num_documents) == (1, 1)
    assert (counts.too_long, counts.first_too_long, counts.lost_tokens) == (2, "rows.jsonl:2", 19)


@pytest.mark.parametrize(("strategy", "kept"), [("right", range(8)), ("left", range(2, 10))])
def test_a_row_longer_than_max_length_is_cut_and_counted(strategy: str, kept: range) -> None:
    writer, counts = write([[row(10, 1)]], strategy)
    assert writer.rows[0].input_ids.tolist() == list(kept)
    assert len(writer.rows[0].loss_mask) == 8
    assert (counts.too_long, counts.lost_tokens) == (1, 2)


def test_a_row_whose_supervised_tokens_are_cut_away_is_bad() -> None:
    writer, counts = write([[row(10, 9)], [row(5, 2)]], "right")
    assert (counts.bad, counts.first_bad) == (1, "rows.jsonl:1")
    assert len(writer.rows) == 1


def test_a_row_that_supervises_only_its_first_token_is_bad() -> None:
    only_first = TokenRow(np.arange(3, dtype=np.int32), np.array([True, False, False]))
    assert write([[only_first], [row(4, 1)]])[1].first_bad == "rows.jsonl:1"


def test_one_conversation_may_give_several_rows() -> None:
    writer, counts = write([[row(3, 1), row(5, 4), row(4, 4)]])
    assert [len(r) for r in writer.rows] == [3, 5]
    assert (writer.num_documents, counts.num_rendered, counts.bad) == (1, 3, 1)


def test_an_error_of_the_renderer_names_the_row() -> None:
    class Refusing:
        def encode(self, *_: Any) -> list[TokenRow]:
            raise DataError("the template refuses it")

    spec = DatasetSpec(type="instruction")
    encoder = ConversationEncoder(Refusing(), spec)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"rows\.jsonl:4: the template refuses it"):
        encoder.encode(SourceRow({"instruction": "a", "output": "b"}, "rows.jsonl:4"))


def test_a_limit_that_no_pack_can_hold_is_refused() -> None:
    assert LengthLimit.of(ChatSpec(), 64) == LengthLimit(64, "delete")
    assert LengthLimit.of(ChatSpec(max_length=32, truncation_strategy="left"), 64) == LengthLimit(32, "left")
    with pytest.raises(ConfigError, match="max_length 65 is above sequence_len 64"):
        LengthLimit.of(ChatSpec(max_length=65), 64)


def test_only_text_is_split_and_by_default_it_is() -> None:
    assert LengthLimit.of(ChatSpec(), 64, "text") == LengthLimit(64, "split")
    assert LengthLimit.of(ChatSpec(truncation_strategy="delete"), 64, "text") == LengthLimit(64, "delete")
    with pytest.raises(ConfigError, match="split is for plain text"):
        LengthLimit.of(ChatSpec(truncation_strategy="split"), 64, "instruction")


def test_the_hash_is_that_of_the_content() -> None:
    assert content_hash([{"role": "user", "content": "a"}]) == content_hash([{"content": "a", "role": "user"}])
    assert content_hash([{"content": "a"}]) != content_hash([{"content": "b"}])
