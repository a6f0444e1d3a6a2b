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


def test_a_line_without_a_whole_number_as_its_step_is_no_record(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    steps = ('"x"', "null", "true", "1.5", "[1]", "9" * 400, "NaN")
    bad = [f'{{"step": {step}}}' for step in steps] + ['{"loss": 1}', "7", "[" * 100_000]
    file.write_text("\n".join([*bad, '{"step": 4, "a": "x"}\r', ""]))
    assert read_records(file) == [{"step": 4, "a": "x"}]
    assert read_records(tmp_path) == []


def test_a_whole_number_that_is_too_large_is_a_float(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    digits = "9" * 5000
    file.write_text(f'{{"step": 1, "a": {10**15 - 1}, "b": {10**20}, "c": {10**400}, "d": -{digits}}}')
    assert read_records(file) == [{"step": 1, "a": 10**15 - 1, "b": 1e20, "c": math.inf, "d": -math.inf}]
