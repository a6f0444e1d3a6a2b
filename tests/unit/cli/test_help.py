from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from surogate.cli import help as pages
from surogate.config.flat import SCHEMAS
from surogate.config.flat_grpo import SCHEMAS_GRPO
from surogate.config.keys import expanded

PROBE = """
import sys
from surogate.cli.main import main
code = main(sys.argv[1:])
assert not {"torch", "lightning", "transformers", "numpy"} & set(sys.modules), "something heavy was loaded"
sys.exit(code)
"""


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["sft", "--help"],
        ["fit", "--help"],
        ["validate", "-h"],
        ["sft", "cfg.yaml", "--help"],
        ["grpo", "--help"],
        ["grpo-infer", "-h"],
        ["env-check", "--help"],
    ],
)
def test_help_loads_nothing_heavy(argv):
    result = subprocess.run([sys.executable, "-c", PROBE, *argv], capture_output=True, text=True, check=False)
    assert result.returncode in (0, 2), result.stderr
    assert "heavy" not in result.stderr


GRPO_FILES = {
    "grpo": ["train", "infer", "orch"],
    "grpo-train": ["train"],
    "grpo-infer": ["infer"],
    "grpo-orch": ["orch"],
}


@pytest.mark.parametrize("verb", ["sft", "pt", "fit", "validate", "submit", *GRPO_FILES])
def test_a_page_starts_with_the_usage_and_has_an_example(verb):
    page = pages.page(verb)
    assert page.startswith(f"usage: surogate {verb} ")
    assert "example" in page


@pytest.mark.parametrize(("verb", "schema"), SCHEMAS.items())
def test_the_page_of_a_training_verb_explains_every_key_of_its_schema(verb, schema):
    page = pages.page(verb)
    for key in expanded(schema).values():
        assert f"  {key.name}  (" in page
        assert key.summary.split()[0] in page


@pytest.mark.parametrize(("verb", "files"), GRPO_FILES.items())
def test_the_page_of_a_verb_of_grpo_explains_every_key_of_its_files_and_of_no_other(verb, files):
    page = pages.page(verb)
    for file, schema in SCHEMAS_GRPO.items():
        assert (f"\n{file}.yaml: " in page) == (file in files)
        if file in files:
            assert [name for name in expanded(schema) if f"  {name}  (" not in page] == []


def test_the_page_shows_type_and_default():
    page = pages.page("sft")
    assert "  lora_rank  (int > 0; 16)" in page
    assert "  lora  (bool; true)" in page
    assert "  lora  (bool; false)" in pages.page("pt")
    assert "  model  (str; required)" in page
    assert "  max_length  (int > 0 or null; not set)" in page
    assert "  loss.type  (aipo, grpo, dr_grpo, dapo, gspo or cispo; aipo)" in pages.page("grpo")
    assert "  gradient_accumulation_steps  (int > 0; 1)" in pages.page("grpo")


def test_every_verb_has_a_module_and_a_line_in_the_overview():
    for name, verb in pages.VERBS.items():
        assert importlib.util.find_spec(verb.module), verb.module
        assert f"  {name} " in pages.overview()


def test_no_verb_is_both_there_and_not_yet_there():
    assert not pages.VERBS.keys() & pages.NOT_YET_VERBS.keys()
