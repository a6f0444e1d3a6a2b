from __future__ import annotations

import pytest

from surogate.verification.resume import Comparison, ResumeReport, Steps
from surogate.verification.states import StateDifference
from surogate.verification.text import resume_text

SAME = StateDifference(num_tensors=2)
OTHER = StateDifference(num_tensors=2, differing=("w",), largest=1e-6, where="w")
ELSEWHERE = StateDifference(num_tensors=2, differing=("w",), largest=1e-6, where="w", values=("ledger/step",))


def compared(loss: float, state: StateDifference) -> Comparison:
    return Comparison(steps=loss, state=state, is_exact=loss == 0 and state.is_none)


def report(comparison: Comparison, control: Comparison | None) -> ResumeReport:
    steps = Steps(values={1: (2.0, 1.0), 2: (1.5, 1.0)})
    return ResumeReport(stopped_after=1, whole=steps, resumed=steps, comparison=comparison, control=control)


@pytest.mark.parametrize(
    ("comparison", "control", "verdict"),
    [
        (compared(0, SAME), None, "exact"),
        (compared(1e-6, OTHER), compared(0, SAME), "broken"),
        (compared(0, OTHER), compared(0, SAME), "broken"),
        (compared(1e-6, OTHER), compared(8e-7, OTHER), "as close as the run is to itself"),
        (compared(1e-3, OTHER), compared(1e-6, OTHER), "broken"),
        (compared(1e-6, ELSEWHERE), compared(1e-6, OTHER), "broken"),
    ],
)
def test_a_resume_is_blamed_only_where_the_machine_repeats_itself(comparison, control, verdict) -> None:
    assert report(comparison, control).verdict == verdict


def test_steps_that_only_one_run_has_are_an_infinite_difference() -> None:
    one, other = Steps(values={1: (2.0, 1.0)}), Steps(values={1: (2.0, 1.0), 2: (1.0, 1.0)})
    assert one.largest_difference(other) == float("inf")
    assert one.largest_difference(Steps(values={1: (2.002, 1.0)})) == pytest.approx(1e-3)


def test_the_text_shows_the_stop_the_difference_and_the_verdict() -> None:
    text = resume_text(report(compared(1e-6, ELSEWHERE), compared(0, SAME)))
    assert "-- new process --" in text and "1 of 2 tensors differ, by 1.0e-06 at most (w)" in text
    assert "Other values that differ: ledger/step." in text
    assert "Two runs in one go: equal bit for bit." in text
    assert text.splitlines()[-1].startswith("VERDICT: NOT EXACT")
    assert "VERDICT: exact" in resume_text(report(compared(0, SAME), None))
