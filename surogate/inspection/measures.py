"""Measuring the data of a run before it is trained on: all of it for `surogate inspect`, a little at every start.

What is not here: the pass over the tokens (token_scan.py), what of it is a problem (findings.py), and how a report is
shown (cli/inspect.py, page.py).

The one idea: everything is read from the stores that training reads, so what is inspected is what is trained on. Equal
documents are told by the hashes that also decide what is held out for validation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from surogate.config.parts import BatchSpec, ChatSpec, DatasetSpec
from surogate.data.packing import MAX_OPEN_PACKS, Packer
from surogate.data.row_store import RowStore
from surogate.errors import DataError
from surogate.inspection.findings import judge, judge_leak, judge_tokens
from surogate.inspection.report import (
    LEVELS,
    PERCENTILES,
    Finding,
    Histogram,
    PackingReport,
    Repeats,
    Report,
    Role,
    SourceReport,
)
from surogate.inspection.row_samples import sample_rows
from surogate.inspection.token_scan import TokenKinds, scan

if TYPE_CHECKING:
    from surogate.data.datamodule import StepDataModule

CHEAP_ROWS = 200
"""Rows of a source that cheap_findings looks into."""
SHARE_EDGES = np.linspace(0, 1, 11)
_LENGTH_BINS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """What the data module was made with."""

    datasets: Sequence[DatasetSpec]
    validation_datasets: Sequence[DatasetSpec]
    batch: BatchSpec
    chat: ChatSpec


def inspect(data: StepDataModule, settings: DataSettings, samples: int = 3) -> Report:
    """Measure and judge all data of a run.

    Args:
        data: after setup.
        settings: that it was made with.
        samples: rows of each training source to show.
    """
    end_token_id = _end_token_id(data)
    kinds = TokenKinds(data.tokenizer, end_token_id)
    measured = [measure(name, store, role, kinds) for name, store, role in _stores(data)]
    summary = data.data_summary()
    epochs = {part["name"]: part["passes_per_epoch"] for part in summary["train"]}
    sources = _with_settings(_with_repeats(data, measured), data, settings, epochs)
    shown = [
        sample
        for name, store in data.train_stores.items()
        for sample in sample_rows(name, store, samples, data.tokenizer, kinds)
    ]
    packing = _pack(data, sources, settings.batch, summary["packs_per_step"])
    report = Report(sources, [], shown, packing)
    return replace(report, findings=_worst_first(judge(report, ends_turns=end_token_id is not None)))


def cheap_findings(data: StepDataModule) -> list[Finding]:
    """Judge what can be seen in a moment: a few rows of each source, and the hashes of all documents.

    A leak is only a warning here: a run that validates on what it trains on, to see whether it can learn at all, is no
    mistake, and rows in common do not make training wrong.

    Args:
        data: after setup.
    """
    end_token_id = _end_token_id(data)
    kinds = TokenKinds(data.tokenizer, end_token_id)
    sources = [measure(name, store, role, kinds, CHEAP_ROWS) for name, store, role in _stores(data)]
    found: list[Finding] = []
    for source in _with_repeats(data, sources):
        found += judge_tokens(source, ends_turns=end_token_id is not None)
        found += [replace(finding, level="warning") for finding in judge_leak(source)]
    return _worst_first(found)


def measure(name: str, store: RowStore, role: Role, kinds: TokenKinds, num_scanned: int | None = None) -> SourceReport:
    """Measure one store.

    Args:
        name: of its source.
        store: its rows.
        role: what they are for.
        kinds: of its tokens.
        num_scanned: rows to look into, evenly spread; None for all.
    """
    lengths, loss_tokens = store.lengths, store.num_loss_tokens
    rows = np.arange(len(store))
    if num_scanned is not None and num_scanned < len(store):
        rows = np.linspace(0, len(store), num_scanned, endpoint=False).astype(int)
    scanned = scan(store, kinds, rows)
    shares = loss_tokens / lengths
    first_rows = _first_rows(store)
    return SourceReport(
        name=name,
        role=role,
        kind=store.info["type"],
        rows=len(store),
        documents=len(first_rows),
        tokens=int(lengths.sum()),
        loss_tokens=int(loss_tokens.sum()),
        info=store.info,
        split_documents=int(np.count_nonzero(np.diff(first_rows, append=len(store)) > 1)),
        length_percentiles=tuple(np.percentile(lengths, PERCENTILES, method="nearest").astype(int).tolist()),
        lengths=Histogram.of(lengths, _length_edges(lengths)),
        mean_share=float(shares.mean()),
        shares=Histogram.of(shares, SHARE_EDGES),
        full_rows=int(np.count_nonzero(loss_tokens >= np.maximum(lengths - 1, 1))),
        scan=scanned,
        origins={what: store.origin(row) for what, row in scanned.examples.items()},
    )


def _length_edges(lengths: np.ndarray) -> np.ndarray:
    """Cut the range in which nearly all lengths lie into equal bins, and give the few long ones a bin of their own."""
    longest, usual = int(lengths.max()), int(np.percentile(lengths, 99))
    width = max(-(-usual // _LENGTH_BINS), 1)
    edges = np.arange(0, usual + width, width)
    return np.append(edges, longest) if longest > edges[-1] else edges


def _stores(data: StepDataModule) -> Iterator[tuple[str, RowStore, Role]]:
    for name, store in data.train_stores.items():
        yield name, store, "train"
    for name, store in data.validation_stores.items():
        yield name, store, "validation"


def _first_rows(store: RowStore) -> np.ndarray:
    """Give the first row of each document; the rows of one stand together."""
    return np.flatnonzero(np.diff(store.documents, prepend=-1))


def _end_token_id(data: StepDataModule) -> int | None:
    """Give the token that ends an answer; None where there are only texts, or the template has none."""
    if all(store.info["type"] == "text" for _, store, _ in _stores(data)):
        return None
    try:
        return data.renderer.end_token_id()
    except DataError:  # the template refuses the conversation that it is asked with; that of the rows it takes
        return None


def _with_repeats(data: StepDataModule, sources: Iterable[SourceReport]) -> list[SourceReport]:
    """Compare the documents of all sources; validation with all of training."""
    seen = np.empty(0, dtype=np.uint64)
    compared = []
    for source, (name, store, role) in zip(sources, _stores(data), strict=True):
        first_rows = _first_rows(store)
        keys = store.document_hashes[store.documents[first_rows]]
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        again = np.flatnonzero(keys[1:] == keys[:-1]) + 1
        first: tuple[str, ...] = ()
        if len(again):
            place = again[np.argmin(order[again])]
            first = tuple(store.origin(int(first_rows[order[i]])) for i in (place - 1, place))
        is_held_out = role == "validation" and _is_view_of(store, data.train_stores.get(name))
        # What is held out by hash cannot leak; of a text that stands alone both sides have rows, but not the same.
        across = 0 if is_held_out else _count_in(seen, keys)
        compared.append(replace(source, is_held_out=is_held_out, repeats=Repeats(len(again), across, first)))
        if role == "train":
            seen = np.sort(np.concatenate([seen, keys]))
    return compared


def _is_view_of(store: RowStore, other: RowStore | None) -> bool:
    """Tell whether two stores show rows of the same one: views share its arrays."""
    return other is not None and store.document_hashes is other.document_hashes


def _count_in(known: np.ndarray, keys: np.ndarray) -> int:
    """Count the keys that are among the known ones; both sorted."""
    places = np.searchsorted(known, keys)
    inside = places < len(known)
    return int(np.count_nonzero(known[places[inside]] == keys[inside]))


def _with_settings(
    sources: Iterable[SourceReport], data: StepDataModule, settings: DataSettings, epochs: Mapping[str, float]
) -> list[SourceReport]:
    """Add what was asked for: which tokens are supervised, and how the sources are mixed."""
    train = dict(zip(data.train_stores, settings.datasets, strict=True))
    validation = dict(zip(data.validation_stores, settings.validation_datasets, strict=False)) or train
    complete = []
    for source in sources:
        is_train = source.role == "train"
        spec = (train if is_train else validation)[source.name]
        complete.append(
            replace(
                source,
                loss_scale=spec.loss_scale or settings.chat.loss_scale,
                weight=spec.weight if is_train else None,
                epochs=epochs[source.name] if is_train else 0.0,
            )
        )
    return complete


def _pack(
    data: StepDataModule, sources: Iterable[SourceReport], batch: BatchSpec, packs_per_step: int
) -> PackingReport:
    """Lay the rows of one epoch into packs, in a random order of its own."""
    random = np.random.default_rng(batch.train_seed)
    drawn = [
        np.resize(random.permutation(data.train_stores[source.name].lengths), round(source.epochs * source.rows))
        for source in sources
        if source.role == "train"
    ]
    lengths = random.permutation(np.concatenate(drawn))
    packs = len(lengths)
    if batch.sample_packing:
        packer = Packer(batch.sequence_len, MAX_OPEN_PACKS)
        closed = sum(packer.add(row, length) is not None for row, length in enumerate(lengths.tolist()))
        packs = closed + len(packer.open_packs)
    steps = data.num_steps(1)
    tokens = int(lengths.sum())
    return PackingReport(
        sequence_len=batch.sequence_len,
        enabled=batch.sample_packing,
        efficiency=tokens / (packs * batch.sequence_len),
        packs=packs,
        packs_per_step=packs_per_step,
        steps=steps,
        tokens_per_step=tokens / steps,
    )


def _worst_first(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))
