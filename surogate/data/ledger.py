"""The data position of a run, and the walk that it is a position in.

What is not here: tokens, ranks and processes (step_batches.py). The one idea: **packs are formed globally, then
dealt to ranks.** The walk sees row lengths only, so every rank computes the same cheap, deterministic stream of global
batches, and one ledger for the whole run says where in it training stands. No rank has a position of its own, so a run
can be continued on another number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from surogate.data.mixing import EpochOrder, draws_per_epoch, epoch_order
from surogate.data.packing import MAX_OPEN_PACKS, Packer
from surogate.errors import CheckpointError

LEDGER_VERSION = 2

Pack = list[int]
"""Row ids, numbered through all sources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """A position between two optimizer steps, as plain values.

    Attributes:
        identity: what decides the walk (Walk.identity); a ledger fits no other walk.
        packs_per_step: packs of a full global batch. The checkpoint fixes it for the run.
        epoch: the epoch that the position is in, counted from 0.
        step: steps of this epoch that lie behind.
        cursors: rows of each source drawn in this epoch.
        open_packs: packs that hold drawn rows and were not handed out yet, oldest first.
    """

    identity: dict[str, Any]
    packs_per_step: int
    epoch: int
    step: int
    cursors: tuple[int, ...]
    open_packs: tuple[tuple[int, ...], ...] = ()
    version: int = LEDGER_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Ledger:
        """Read what to_dict gave.

        Raises:
            CheckpointError: it was written in another version's format.
        """
        if values.get("version") != LEDGER_VERSION:
            raise CheckpointError(
                f"The checkpoint's data position has version {values.get('version')!r}; this Surogate reads version "
                f"{LEDGER_VERSION}. Continue with the Surogate that wrote it, or start a new output_dir."
            )
        cursors = tuple(values["cursors"])
        return cls(**{**values, "cursors": cursors, "open_packs": tuple(map(tuple, values["open_packs"]))})


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkSpec:
    """What decides the walk besides the rows."""

    sequence_len: int
    packing: bool
    seed: int
    weights: tuple[float, ...] | None
    """Of each source; None = every row once an epoch."""


class Walk:
    """The stream of global batches over all epochs.

    Args:
        lengths: tokens of every row, one array a source.
        fingerprints: name of each source to the fingerprint of its rows.
        spec: the settings.
    """

    def __init__(self, lengths: Sequence[np.ndarray], fingerprints: Mapping[str, str], spec: WalkSpec) -> None:
        self.spec = spec
        self.num_rows = [len(array) for array in lengths]
        self.lengths = np.concatenate(list(lengths))
        self.draws = draws_per_epoch(self.num_rows, spec.weights)
        self.identity: dict[str, Any] = {
            **asdict(spec),
            "weights": None if spec.weights is None else list(spec.weights),
            "rows": dict(fingerprints),
        }
        self._num_packs: dict[int, int] = {}

    def start(self, epoch: int, packs_per_step: int) -> Ledger:
        """Give the position before the first step of an epoch."""
        return Ledger(
            identity=self.identity, packs_per_step=packs_per_step, epoch=epoch, step=0, cursors=(0,) * len(self.draws)
        )

    def next_start(self, ledger: Ledger) -> Ledger:
        """Give the position to train from: the ledger's own, or the next epoch's start where its epoch is complete."""
        complete = list(ledger.cursors) == self.draws and not ledger.open_packs
        return self.start(ledger.epoch + 1, ledger.packs_per_step) if complete else ledger

    def check(self, ledger: Ledger) -> None:
        """Refuse a ledger of another walk.

        Raises:
            CheckpointError: naming all that differs.
        """
        was, now = ledger.identity, self.identity
        differences = [
            f"{key} was {was[key]} and is {now[key]}" for key in now if key != "rows" and was[key] != now[key]
        ]
        if list(was["rows"]) != list(now["rows"]):
            differences.append(f"the data sets were {', '.join(was['rows'])} and are {', '.join(now['rows'])}")
        else:
            changed = [name for name in now["rows"] if was["rows"][name] != now["rows"][name]]
            differences += [
                f"{name} has other rows (its file, the tokenizer, the template or the validation split changed)"
                for name in changed
            ]
        if differences:
            raise CheckpointError(
                f"The checkpoint's data position does not fit this run: {'; '.join(differences)}. "
                "Restore what it was to continue, or start a new output_dir."
            )

    def steps(self, ledger: Ledger) -> Iterator[tuple[list[Pack], Ledger]]:
        """Walk from a position to the end of its epoch.

        Yields:
            A global batch (packs_per_step packs, fewer in the last of the epoch) and the ledger after it.
        """
        order = epoch_order(self.num_rows, self.spec.weights, self.spec.seed, ledger.epoch)
        packer = self._packer()
        packer.reopen(ledger.open_packs, lambda row_id: int(self.lengths[row_id]))
        position = sum(ledger.cursors)
        batch: list[Pack] = []

        def ledger_after(new_position: int) -> Ledger:
            drawn = np.bincount(order.sources[position:new_position], minlength=len(ledger.cursors))
            return replace(
                ledger,
                step=ledger.step + 1,
                cursors=tuple((np.array(ledger.cursors) + drawn).tolist()),
                open_packs=tuple(map(tuple, packer.open_packs)),
            )

        for pack, new_position in self._packs(order, position, packer):
            batch.append(pack)
            if len(batch) == ledger.packs_per_step:
                ledger, position = ledger_after(new_position), new_position
                yield batch, ledger
                batch = []
        if batch:
            yield batch, ledger_after(len(order))

    def drawn(self, ledger: Ledger) -> list[int]:
        """Count the rows of each source that were drawn up to a position, all epochs together."""
        return [ledger.epoch * draws + cursor for draws, cursor in zip(self.draws, ledger.cursors, strict=True)]

    def num_steps(self, epoch: int, packs_per_step: int) -> int:
        """Count the steps of an epoch by walking it; remembered, as it depends on the shuffle."""
        if epoch not in self._num_packs:
            self._num_packs[epoch] = self._count_packs(
                epoch_order(self.num_rows, self.spec.weights, self.spec.seed, epoch)
            )
        return -(-self._num_packs[epoch] // packs_per_step)

    def _count_packs(self, order: EpochOrder) -> int:
        if not self.spec.packing:
            return len(order)
        # A full row fits into no open pack and closes its own at once, so it changes nothing for the others.
        is_full = self.lengths[order.row_ids] == self.spec.sequence_len
        others = EpochOrder(order.row_ids[~is_full], order.sources[~is_full])
        return int(is_full.sum()) + sum(1 for _ in self._packs(others, 0, self._packer()))

    def packs_in_file_order(self) -> Iterator[Pack]:
        """Pack every row once, unshuffled, for validation."""
        everything = EpochOrder(np.arange(len(self.lengths)), np.zeros(len(self.lengths), dtype=np.int64))
        return (pack for pack, _ in self._packs(everything, 0, self._packer()))

    def _packer(self) -> Packer:
        return Packer(self.spec.sequence_len, MAX_OPEN_PACKS if self.spec.packing else 0)

    def _packs(self, order: EpochOrder, position: int, packer: Packer) -> Iterator[tuple[Pack, int]]:
        """Yield each pack as it closes, with the position in the order behind the row that closed it."""
        row_ids = order.row_ids[position:]
        drawn = zip(row_ids.tolist(), self.lengths[row_ids].tolist(), strict=True)
        for new_position, (row_id, length) in enumerate(drawn, start=position + 1):
            if pack := packer.add(row_id, length):
                yield pack, new_position
        while pack := packer.close_oldest():
            yield pack, len(order)
