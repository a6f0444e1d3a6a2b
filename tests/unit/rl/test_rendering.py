"""Two tokenizers that would write other prompts, or end texts elsewhere, are told apart; like ones are not."""

from __future__ import annotations

import json

import pytest
from support.byte_model import byte_tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from surogate.errors import ConfigError, ModelError
from surogate.rl.rendering import check_engine_tokens, check_same_rendering, check_template_options, rendering


def with_swapped_letters():
    state = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|im_end|>")
    fast.chat_template = byte_tokenizer().chat_template
    return fast


def with_template(template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def with_end(token):
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = token
    return tokenizer


def test_like_tokenizers_agree_also_after_a_way_over_json():
    theirs = json.loads(json.dumps(rendering(byte_tokenizer(), {})))
    check_same_rendering(rendering(byte_tokenizer(), {}), theirs)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (with_swapped_letters(), "the vocabulary of their tokenizers differ"),
        (with_template("{% for m in messages %}{{ m.content }}{% endfor %}"), "the chat template of their tokenizers"),
        (with_template(None), "the chat template of their tokenizers"),
        (with_end("<|endoftext|>"), "the end token of their tokenizers"),
    ],
)
def test_an_orchestrator_that_writes_other_prompts_is_refused(other, what):
    with pytest.raises(ModelError, match=what):
        check_same_rendering(rendering(byte_tokenizer(), {}), rendering(other, {}))


THINKING = "{% for m in messages %}{{ m.content }}{% endfor %}{% if not enable_thinking %}</think>{% endif %}"


def test_the_same_options_are_rendered_on_both_sides():
    quiet = {"enable_thinking": False}
    check_same_rendering(rendering(with_template(THINKING), quiet), rendering(with_template(THINKING), quiet))
    with pytest.raises(ModelError, match="the chat template of their tokenizers"):
        check_same_rendering(
            rendering(with_template(THINKING), quiet), rendering(with_template(THINKING), {"enable_thinking": True})
        )


def test_an_option_that_the_template_does_not_know_is_refused():
    check_template_options(with_template(THINKING), {"enable_thinking": False})
    check_template_options(with_template(None), {})
    with pytest.raises(ConfigError, match=r"has enable_thinkin, and the model's chat template knows no such option"):
        check_template_options(with_template(THINKING), {"enable_thinkin": False})
    with pytest.raises(ConfigError, match="the tokenizer has no chat template to take it"):
        check_template_options(with_template(None), {"enable_thinking": False})


def test_an_engine_of_the_same_tokens_serves_a_tokenizer_that_knows_more(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    larger = byte_tokenizer()
    larger.add_tokens(["<tool>"])
    check_engine_tokens(larger, byte_tokenizer(), tmp_path)
    with pytest.raises(ModelError, match="give 1 tokens other numbers, for example '<tool>'"):
        check_engine_tokens(byte_tokenizer(), larger, tmp_path)


@pytest.mark.parametrize(
    ("files", "stops"),
    [
        ({"config.json": 2}, False),
        ({"config.json": 0}, True),
        ({"config.json": 0, "generation_config.json": 2}, False),
        ({"config.json": 2, "generation_config.json": [2, 0]}, True),
        ({}, False),
    ],
)
def test_the_engine_must_stop_at_the_end_token(tmp_path, files, stops):
    for name, ends in files.items():
        (tmp_path / name).write_text(json.dumps({"eos_token_id": ends}))
    if stops:
        check_engine_tokens(with_end("<|endoftext|>"), byte_tokenizer(), tmp_path)
    else:
        with pytest.raises(ModelError, match=r"ends a text with '<\|endoftext\|>', and the engine"):
            check_engine_tokens(with_end("<|endoftext|>"), byte_tokenizer(), tmp_path)
