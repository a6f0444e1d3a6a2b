"""What a log line says of several steps."""

from __future__ import annotations

from surogate.callbacks.rollout_metrics import RolloutWindow


def test_numbers_are_averaged_but_maxima_and_clocks_span_the_window():
    window = RolloutWindow()
    for step in (1.0, 3.0):
        names = ("reward/mean", "staleness/max", "completion/max_len", "clock/train_began", "clock/train_ended")
        window.add(dict.fromkeys(names, step))
    window.add({"reward/mean": 5.0})
    assert window.close() == {
        "reward/mean": 3.0,
        "staleness/max": 3.0,
        "completion/max_len": 3.0,
        "clock/train_began": 1.0,
        "clock/train_ended": 3.0,
    }
    assert window.close() == {}
