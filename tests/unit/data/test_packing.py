from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from surogate.data.packing import Packer

LENGTHS = st.lists(st.integers(1, 16), max_size=60)


def pack_all(packer: Packer, lengths: list[int], start: int = 0) -> list[list[int]]:
    packs = [packer.add(row, lengths[row]) for row in range(start, len(lengths))]
    while pack := packer.close_oldest():
        packs.append(pack)
    return [pack for pack in packs if pack]


@given(LENGTHS, st.integers(0, 5))
def test_no_row_is_lost_or_doubled_and_no_pack_overflows(lengths: list[int], max_open: int) -> None:
    packs = pack_all(Packer(capacity=16, max_open=max_open), lengths)
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in pack) <= 16 for pack in packs)


@given(LENGTHS, st.integers(0, 5), st.data())
def test_the_open_packs_are_the_whole_state(lengths: list[int], max_open: int, data: st.DataObject) -> None:
    stop = data.draw(st.integers(0, len(lengths)))
    uninterrupted = pack_all(Packer(16, max_open), lengths)
    first, second = Packer(16, max_open), Packer(16, max_open)
    before = [pack for row in range(stop) if (pack := first.add(row, lengths[row]))]
    second.reopen(first.open_packs, lengths.__getitem__)
    assert before + pack_all(second, lengths, stop) == uninterrupted


@given(LENGTHS, st.integers(0, 5))
def test_at_most_the_allowed_number_of_packs_is_open(lengths: list[int], max_open: int) -> None:
    packer = Packer(16, max_open)
    for row, length in enumerate(lengths):
        packer.add(row, length)
        assert len(packer.open_packs) <= max_open


def test_a_row_goes_where_it_leaves_the_least_space() -> None:
    packer = Packer(capacity=10)
    packer.add(0, 6)  # leaves 4
    packer.add(1, 7)  # leaves 3
    packer.add(2, 2)  # fits both
    assert packer.open_packs == [[0], [1, 2]]


def test_a_full_pack_is_closed_at_once() -> None:
    packer = Packer(capacity=10)
    packer.add(0, 6)
    assert packer.add(1, 4) == [0, 1]
    assert packer.open_packs == []


def test_where_too_many_are_open_the_fullest_is_closed() -> None:
    packer = Packer(capacity=10, max_open=2)
    packer.add(0, 6)
    packer.add(1, 8)
    assert packer.add(2, 7) == [1]
    assert packer.open_packs == [[0], [2]]
