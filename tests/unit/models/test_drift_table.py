"""Which merge is recommended, and which is refused."""

from __future__ import annotations

from typing import Any

import pytest

from surogate.models.drift import Drift
from surogate.models.drift_table import KL_LIMIT, LOSS_CEILING, LOSS_FLOOR, DriftTable

LOSS = 1.0


def drift(kl: float = 0.0, change: float = 0.0, error: float = 0.001, agreement: float = 0.9) -> Drift:
    return Drift(mean_kl=kl, top1_agreement=agreement, loss=LOSS + change, loss_change=change, loss_error=error)


def table(base: Drift | None = None, impossible: dict[Any, str] | None = None, **targets: Drift) -> DriftTable:
    return DriftTable(
        storage="nf4",
        dtype="bfloat16",
        origin="validation rows of the run",
        num_rows=12,
        num_positions=345,
        loss=LOSS,
        without_adapter=base or drift(kl=1.0, change=0.5),
        targets=targets,  # type: ignore[arg-type]
        impossible=impossible or {},
    )


def test_what_trained_is_recommended_unless_the_original_weights_do_better() -> None:
    alike = table(original=drift(kl=0.03, change=-0.001, error=0.01), dequantized=drift(kl=1e-5))
    assert alike.recommended == "dequantized" and "original weights do no better" in alike.reason()
    better = table(original=drift(kl=0.03, change=-0.05, error=0.01), dequantized=drift(kl=1e-5))
    assert better.recommended == "original" and "0.0500 nats lower" in better.reason()
    far = table(original=drift(kl=5.0, change=-0.05, error=0.01), dequantized=drift(kl=1e-5))
    assert far.recommended == "original" and far.refusal("original") is None


def test_without_original_weights_the_dequantised_ones_are_recommended() -> None:
    only = table(impossible={"original": "nobody knows them"}, dequantized=drift(kl=2e-5), requantized=drift(kl=0.01))
    assert only.recommended == "dequantized"
    assert only.reason() == "it is what trained, to within 2.0e-05 nats"
    assert "original       not possible: nobody knows them" in str(only)


@pytest.mark.parametrize(
    ("base", "found", "is_refused"),
    [
        (drift(kl=1.0, change=0.5), drift(kl=0.9 * KL_LIMIT, change=0.001), False),
        (drift(kl=1.0, change=0.5), drift(kl=1.1 * KL_LIMIT, change=0.001), True),
        (drift(kl=1.0, change=0.5), drift(kl=1.1 * KL_LIMIT, change=-0.001), False),
        (drift(kl=1.0, change=0.5), drift(kl=0.6, change=-0.01, error=0.1), True),
        (drift(kl=1.0, change=0.5), drift(kl=0.6, change=-0.5), False),
        (drift(kl=1.0, change=0.5), drift(kl=0.01, change=0.06), True),
        (drift(kl=1.0, change=0.5), drift(kl=0.01, change=0.06, error=0.05), False),
        (drift(kl=1.0, change=0.5), drift(kl=0.01, change=0.04), False),
        (drift(kl=1.0, change=0.02), drift(kl=0.01, change=0.9 * LOSS_FLOOR), False),
        (drift(kl=10.0, change=9.0), drift(kl=0.5, change=1.1 * LOSS_CEILING), True),
        (drift(kl=10.0, change=9.0), drift(kl=0.5, change=0.9 * LOSS_CEILING), False),
    ],
)
def test_a_target_is_refused_for_what_it_gives_back_of_what_the_adapter_did(
    base: Drift, found: Drift, is_refused: bool
) -> None:
    judged = table(base, requantized=found, dequantized=drift())
    assert (judged.refusal("requantized") is not None) == is_refused
    assert judged.refusal("dequantized") is None


def test_the_table_says_everything_once() -> None:
    shown = str(
        table(
            original=drift(kl=0.03, change=0.02),
            dequantized=drift(kl=1e-5),
            requantized=drift(kl=0.8, change=0.4, agreement=0.4),
        )
    )
    assert "the base in nf4" in shown and "12 validation rows of the run (345 supervised tokens)" in shown
    lines = {line.split("  ")[1]: line for line in shown.splitlines() if line.startswith("  ")}
    assert lines["base alone"].split()[2:6] == ["1", "90.0%", "1.5000", "+0.5000"]
    assert lines["requantized"].split()[1:5] == ["0.8", "40.0%", "1.4000", "+0.4000"]
    assert "too far: the loss rises by 0.400 nats, of 0.500 that the adapter takes off (limit 0.050)" in shown
    assert shown.endswith("on these rows the original weights do no better.")
