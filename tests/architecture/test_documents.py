"""Documents that lie: dead links, stale references, examples that do not parse."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from surogate.config.read import read_config
from surogate.config.reference import reference

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "docs").rglob("*.mdx")]
)
PROMISED = [
    "docs/index.mdx",
    "docs/getting-started/training-modes.md",
    "docs/getting-started/quickstart-sft.md",
    "docs/guides/configuration.md",
    "docs/reference/config.md",
]
ROWS = REPOSITORY / "tests/data/factbook.jsonl"
LINK = re.compile(r"\]\(([^)\s]+)\)")
MACHINE_PATH = re.compile(r"(^|[^A-Za-z0-9_.])/(work|root|farm|tmp)/[A-Za-z]")
"""Absolute paths of somebody's machine."""


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def anchors(document: Path) -> set[str]:
    """The anchors that a renderer makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PROMISED)
def test_a_promised_page_exists(path: str):
    assert (REPOSITORY / path).is_file()


def test_the_config_reference_is_what_the_schema_says():
    page = (REPOSITORY / "docs/reference/config.md").read_text()
    assert page == reference(), "run `make reference`"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_relative_link_leads_somewhere(document: Path):
    dead = []
    for link in LINK.findall(document.read_text()):
        if "://" in link or link.startswith("mailto:"):
            continue
        target, _, anchor = link.partition("#")
        file = (document.parent / target) if target else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(link)
    assert not dead


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_config_that_a_page_names_exists(document: Path):
    named = set(re.findall(r"\b(?:configs|recipes)/[\w/-]+\.yaml", document.read_text()))
    assert not [path for path in named if not (REPOSITORY / path).is_file()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_flat_config_on_a_page_is_read_without_complaint(document: Path, tmp_path: Path):
    for block in re.findall(r"```yaml\n(model: .*?)```", document.read_text(), re.DOTALL):
        (tmp_path / "run.yaml").write_text(block)
        assert read_config("sft", tmp_path / "run.yaml", ["--datasets.0.path", str(ROWS)])


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_make_target_that_a_page_names_exists(document: Path):
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)", document.read_text())) <= targets


def test_no_tracked_file_names_a_path_of_one_machine(tracked_files: list[Path]):
    found = []
    for path in tracked_files:
        if path.suffix in {".lock", ".png", ".gguf", ".safetensors", ".parquet", ".gz"}:
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if MACHINE_PATH.search(line):
                found.append(f"{name_of(path)}:{number}: {line.strip()[:80]}")
    assert not found
