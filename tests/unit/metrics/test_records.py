from __future__ import annotations

import json
import math
from pathlib import Path

from surogate.metrics.records import read_records, to_line


def test_what_a_killed_run_left_half_written_is_skipped(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    assert read_records(file) == []
    file.write_bytes(b'{"step": 1}\n[3]\n\xff\xfe\n{"step": 2}\n{"step": 3, "tra')
    assert read_records(file) == [{"step": 1}, {"step": 2}]


def test_a_number_that_is_not_finite_is_null():
    line = to_line({"step": 1, "a": math.nan, "b": math.inf, "c": 0.5, "d": 3})
    assert line.endswith("\n") and json.loads(line) == {"step": 1, "a": None, "b": None, "c": 0.5, "d": 3}
