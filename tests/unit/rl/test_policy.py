"""What environments may ask of the policy."""

from __future__ import annotations

import asyncio

import pytest
from support.byte_model import byte_tokenizer
from support.rollouts import CharTokenizer, GatedGenerator
from support.word_tokenizer import save_word_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from surogate.config.parts_grpo import SamplingSpec
from surogate.errors import DataError
from surogate.rl.policy import PromptTooLong, SampledPolicy, UnusablePrompt


def make_policy(generator=None, tokenizer=None, max_len=10, seed=5, **sampling):
    spec = SamplingSpec(**{"max_tokens": 4, **sampling})
    return SampledPolicy(tokenizer or CharTokenizer(), generator or GatedGenerator(script=None), spec, max_len, seed)


def test_text_is_tokenised_as_it_is_and_messages_by_the_template(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(save_word_tokenizer(tmp_path, ["hello", "you"]))
    policy = make_policy(tokenizer=tokenizer)
    assert policy.render("hello you") == tokenizer.convert_tokens_to_ids(["hello", "you"])
    rendered = policy.render([{"role": "user", "content": "hello"}])
    assert tokenizer.convert_ids_to_tokens(rendered) == ["<user>", "hello", "<end>", "<assistant>"]
    assert policy.decode([*rendered[1:2], tokenizer.eos_token_id]) == "hello"


THINKING = (
    "{% for m in messages %}{{ m.content }} {% endfor %}<assistant>"
    "{% if enable_thinking is defined and enable_thinking is false %} <no> <think>{% endif %}"
)


def test_options_of_the_template_are_those_of_sampling(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(save_word_tokenizer(tmp_path, ["hello", "<no>", "<think>"]))
    tokenizer.chat_template = THINKING
    messages = [{"role": "user", "content": "hello"}]
    options = ({}, {"enable_thinking": False})
    policies = [make_policy(tokenizer=tokenizer, chat_template_kwargs=each) for each in options]
    rendered = [tokenizer.convert_ids_to_tokens(policy.render(messages)) for policy in policies]
    assert rendered == [["hello", "<assistant>"], ["hello", "<assistant>", "<no>", "<think>"]]


def test_a_tokenizer_that_ends_texts_by_itself_does_not_end_prompts():
    tokenizer = byte_tokenizer()
    start, end = tokenizer.bos_token, tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, tokenizer.bos_token_id), (end, tokenizer.eos_token_id)]
    )
    assert tokenizer("ab").input_ids[-1] == tokenizer.eos_token_id
    policy = make_policy(tokenizer=tokenizer)
    assert tokenizer.decode(policy.render("ab")) == f"{start}ab"
    assert tokenizer.decode(make_policy(tokenizer=byte_tokenizer()).render(f"ab{end}")) == f"ab{end}"


def test_messages_without_a_template_are_refused():
    with pytest.raises(DataError, match="has no chat template"):
        make_policy().render([{"role": "user", "content": "hello"}])


def test_completions_are_cut_to_the_room_that_is_left():
    policy = make_policy(GatedGenerator(script=None, eos_id=-1))
    lengths = [len(asyncio.run(policy.sample([1] * size, 1))[0].token_ids) for size in (3, 6, 7, 9)]
    assert lengths == [4, 4, 3, 1]


def test_a_prompt_without_room_or_tokens_is_refused_before_the_engine_is_asked():
    generator = GatedGenerator()
    with pytest.raises(PromptTooLong, match="has 10 tokens, and prompt and completion together may have 10"):
        asyncio.run(make_policy(generator).sample([1] * 10, 1))
    with pytest.raises(PromptTooLong, match="has 8 tokens"):
        asyncio.run(make_policy(generator, min_tokens=3).sample([1] * 8, 1))
    with pytest.raises(UnusablePrompt, match="has no tokens"):
        asyncio.run(make_policy(generator).sample([], 1))
    assert not generator.begun


def test_a_second_turn_draws_other_numbers_and_a_second_run_the_same():
    def turns():
        policy = make_policy()
        return [asyncio.run(policy.sample([1, 2], 2)) for _ in range(2)]

    first, second = turns()
    assert first != second
    assert turns() == [first, second]
