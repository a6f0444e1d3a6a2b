from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from surogate.batches import TokenRow
from surogate.config.parts import BatchSpec, ChatSpec, DatasetSpec
from surogate.data.row_store import RowStore
from surogate.inspection.measures import DataSettings, inspect
from surogate.inspection.page import page
from surogate.inspection.report import Finding, Report

HOSTILE = "</pre></main><script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;\x1b[2J\u202e"
VOID = {"meta"}
KNOWN_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "header", "h1", "h2", "h3", "p", "b", "ul", "li"),
    *("span", "strong", "dl", "dt", "dd", "div", "table", "thead", "tbody", "tfoot", "tr", "th", "td"),
    *("figure", "figcaption", "svg", "rect", "line", "text", "section", "pre"),
}


class Reader(HTMLParser):
    """Collects text, and fails on a tag that is not the page's own or is closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in KNOWN_TAGS, f"<{tag}> inside {self.open}"
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        assert tag == "line"
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def report(smollm2: Any) -> Report:
    ids = smollm2(f"<|im_start|>{HOSTILE}<|im_end|>")["input_ids"]
    store = RowStore.build([TokenRow(np.array(ids, dtype=np.int32), np.arange(len(ids)) > 3)] * 3)
    store.info.update(type="conversation", num_rendered=3, too_long=0, lost_tokens=0, bad=0)
    summary = {"train": [{"name": HOSTILE, "passes_per_epoch": 1.0}], "packs_per_step": 2}
    data: Any = SimpleNamespace(
        train_stores={HOSTILE: store},
        validation_stores={},
        tokenizer=smollm2,
        renderer=SimpleNamespace(end_token_id=lambda: smollm2.eos_token_id),
        data_summary=lambda: summary,
        num_steps=lambda epochs: 1,
    )
    batch = BatchSpec(sequence_len=256)
    settings = DataSettings(datasets=[DatasetSpec()], validation_datasets=[], batch=batch, chat=ChatSpec())
    found = inspect(data, settings, samples=1)
    return replace(found, findings=[*found.findings, Finding("problem", HOSTILE, HOSTILE)])


def test_hostile_text_stays_text(report: Report) -> None:
    reader = read(page(report, HOSTILE))
    assert not {name for name, _ in reader.attributes if name.startswith("on") or name in ("src", "href")}
    shown = "".join(reader.texts)
    assert shown.count("<script>alert(1)</script>") >= 5  # title twice, source, finding, row
    assert "\x1b" not in shown and "\u202e" not in shown


def test_the_page_needs_nothing_from_elsewhere(report: Report) -> None:
    text = page(report, "cfg.yaml")
    assert "default-src 'none'" in text and "<script" not in text
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "")
    assert "prefers-color-scheme: dark" in text


def test_every_token_shows_its_mask_and_its_id(report: Report) -> None:
    text = page(report, "cfg.yaml")
    (sample,) = report.samples
    pieces = [piece for piece in sample.pieces if piece.token_ids]
    assert text.count('<span class="s') == sum(piece.supervised for piece in pieces)
    assert f'<span class="t" title="token 0, id {pieces[0].token_ids[0]}">&lt;|im_start|&gt;</span>' in text
    assert f'title="token {pieces[-1].position}, id {pieces[-1].token_ids[0]}, supervised"' in text


def test_a_page_of_data_that_could_not_be_read_says_why() -> None:
    shown = read(page(Report(findings=[Finding("problem", "", "rows.jsonl:3: no role")]), "cfg.yaml")).texts
    assert "rows.jsonl:3: no role" in shown and "Sources" not in shown


def test_a_page_without_findings_says_so(report: Report) -> None:
    assert "Nothing to remark." in read(page(replace(report, findings=[]), "cfg.yaml")).texts
