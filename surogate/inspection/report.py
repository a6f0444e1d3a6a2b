"""The nouns of an inspection: what was measured, and what there is to know about it.

What is not here: measuring (measures.py), judging (findings.py) and showing (cli/inspect.py, page.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from surogate.inspection.row_samples import RowSample
from surogate.inspection.token_scan import TokenScan

PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)

Level = Literal["problem", "warning", "note"]
LEVELS: tuple[Level, ...] = ("problem", "warning", "note")
Role = Literal["train", "validation"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know about the data.

    Attributes:
        level: problem = do not train on this; warning = look at it; note = good to know.
        source: the data set, empty where it is about all of them.
        text: what was found and what to do.
    """

    level: Level
    source: str
    text: str

    def __str__(self) -> str:
        return f"{self.source}: {self.text}" if self.source else self.text


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts between edges; the last bin holds its upper edge too."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: np.ndarray, edges: np.ndarray) -> Histogram:
        """Count values."""
        return cls(tuple(edges.tolist()), tuple(np.histogram(values, edges)[0].tolist()))


@dataclass(frozen=True, slots=True)
class Repeats:
    """Equal documents.

    Attributes:
        within: documents that stand in the same source before.
        across: documents that stand in a source before this one; for validation, in a training source.
        first: origins of the first pair in the same source.
    """

    within: int = 0
    across: int = 0
    first: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReport:
    """What was measured of one source, in one of its roles.

    Attributes:
        kind: type of its rows: text, instruction, conversation.
        info: counts of the build, for the whole source (RowStore.info).
        split_documents: conversations that became several rows.
        length_percentiles: tokens a row at each of PERCENTILES.
        lengths: of its rows, in tokens.
        mean_share: of a row's tokens that are supervised.
        shares: the same, over rows.
        full_rows: rows of which every token that can be a target is one.
        scan: of all its rows, or of some.
        origins: where the rows of scan.examples stand.
        is_held_out: the rows were taken out of a training source for validation.
        loss_scale: which tokens are to be supervised.
        weight: as set, None where it is not.
        epochs: times that its rows are drawn in one epoch of the run, on average; 0 for validation.
    """

    name: str
    role: Role
    kind: str
    rows: int
    documents: int
    tokens: int
    loss_tokens: int
    info: Mapping[str, Any]
    split_documents: int
    length_percentiles: tuple[int, ...]
    lengths: Histogram
    mean_share: float
    shares: Histogram
    full_rows: int
    scan: TokenScan
    origins: Mapping[str, str]
    repeats: Repeats = Repeats()
    is_held_out: bool = False
    weight: float | None = None
    loss_scale: str = "default"
    epochs: float = 0.0

    @property
    def is_text(self) -> bool:
        """Whether its rows are pieces of documents, not conversations."""
        return self.kind == "text"

    @property
    def noun(self) -> str:
        """What its documents are called."""
        return "documents" if self.is_text else "conversations"

    @property
    def too_long(self) -> int:
        """Rows of the whole source that were longer than max_length."""
        return int(self.info["too_long"])

    @property
    def ends(self) -> tuple[int, int]:
        """Supervised turns, or texts, that hold their end token, and all of them."""
        if self.is_text:
            return self.scan.ended_rows, self.documents
        return self.scan.ended_turns, self.scan.turns

    def percentile(self, percent: int) -> int:
        """Tokens of a row that is longer than so many per cent of all; one of PERCENTILES."""
        return self.length_percentiles[PERCENTILES.index(percent)]

    @property
    def drawn_tokens(self) -> float:
        """Tokens that an epoch of the run takes from it."""
        return self.tokens * self.epochs


@dataclass(frozen=True, slots=True)
class PackingReport:
    """How rows become steps.

    Attributes:
        efficiency: real tokens / (packs x sequence_len).
        packs: of one epoch.
        packs_per_step: of a full step, on one device.
        steps: of one epoch.
        tokens_per_step: real tokens, on average.
    """

    sequence_len: int
    enabled: bool
    efficiency: float
    packs: int
    packs_per_step: int
    steps: int
    tokens_per_step: float


@dataclass(frozen=True, slots=True)
class Report:
    """All that `surogate inspect` shows."""

    sources: list[SourceReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    samples: list[RowSample] = field(default_factory=list)
    packing: PackingReport | None = None

    @property
    def has_problems(self) -> bool:
        """Whether anything must be changed before training."""
        return any(finding.level == "problem" for finding in self.findings)
