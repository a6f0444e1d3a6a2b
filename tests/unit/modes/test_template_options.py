"""Options of a chat template are looked at as soon as the tokenizer is there, before any weight is read."""

from __future__ import annotations

import pytest
from support.byte_model import byte_tokenizer

from surogate.config.identity import run_identity
from surogate.config.parts_grpo import OrchestratorSpec, SamplingSpec
from surogate.errors import ConfigError
from surogate.modes import RolloutDataModule

QUIET = {"enable_thinking": False}


def test_an_option_that_the_template_does_not_know_ends_the_set_up(tmp_path):
    tokenizer = byte_tokenizer()
    spec = OrchestratorSpec(sampling=SamplingSpec(chat_template_kwargs=QUIET))
    tokenizer.save_pretrained(tmp_path / "plain")
    with pytest.raises(ConfigError, match="has enable_thinking, and the model's chat template knows no such option"):
        RolloutDataModule(str(tmp_path / "plain"), spec).setup()
    tokenizer.chat_template += "{% if not enable_thinking %}</think>{% endif %}"
    tokenizer.save_pretrained(tmp_path / "thinking")
    RolloutDataModule(str(tmp_path / "thinking"), spec).setup()


def test_a_run_with_other_options_is_another_run():
    def identity(options):
        return run_identity({}, {"init_args": {"orchestrator": {"sampling": {"chat_template_kwargs": options}}}})

    assert identity(QUIET) != identity({})
