"""The loss mask on five families of templates: supervised tokens decode to the answer and its end token, nothing else.

The families' tokenizers are in conftest.py.
"""

from __future__ import annotations

import logging
from itertools import groupby

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from surogate.config.parts import ChatSpec
from surogate.data.chat import ChatRenderer
from surogate.errors import ConfigError, DataError

PARIS_CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": {}}}]


def system(text: str) -> dict:
    return {"role": "system", "content": text}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str | None, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


def tool(text: str) -> dict:
    return {"role": "tool", "content": text}


def supervised(tokenizer, messages, tools=None, **spec) -> list[list[str]]:
    """Decode each run of supervised tokens, row by row."""
    rows = ChatRenderer(tokenizer, ChatSpec(**spec)).encode(messages, tools)
    return [_runs(tokenizer, row) for row in rows]


def _runs(tokenizer, row) -> list[str]:
    runs = groupby(zip(row.input_ids.tolist(), row.loss_mask.tolist(), strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for is_target, run in runs if is_target]


TWO_ROUNDS = [user("Capital of France?"), assistant("Paris."), user("Of Ruritania?"), assistant("Strelsau.")]
END = {
    "smollm2": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "qwen3": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "gpt_oss": "<|return|>",
}
OPENING = {"qwen3": "<think>\n\n</think>\n\n", "gpt_oss": "<|channel|>final<|message|>"}
REWRITES_HISTORY = {"qwen3", "gpt_oss"}


@pytest.fixture
def name(request, family) -> str:
    return next(param for param in END if request.getfixturevalue(param) is family)


def test_each_answer_of_two_rounds_is_supervised_with_its_end_token(family, name):
    first, second = (OPENING.get(name, "") + text + END[name] for text in ("Paris.", "Strelsau."))
    expected = [[first], [second]] if name in REWRITES_HISTORY else [[first, second]]
    assert supervised(family, TWO_ROUNDS) == expected


@pytest.mark.parametrize(
    "answer",
    ["Héllo 😀", "😀", "你好,世界。", "👩‍👩‍👧 e\u0301", "a\u200bb", "if x:\n    pass", "<|not|> <special>", "."],
)
def test_text_of_any_script_is_supervised_exactly(family, name, answer):
    rows = supervised(family, [user("Say 😀"), assistant(answer), user("é😀"), assistant("Bye")])
    assert OPENING.get(name, "") + answer + END[name] in [run for row in rows for run in row]


@pytest.mark.parametrize("answer", ["Hi", "", "\n\nHi", "  Hi", "😀 Hi \n"])
@pytest.mark.parametrize("question", ["Who?", "Who 😀 \n\n"])
@pytest.mark.parametrize("response_prefix", [None, "<think>\n\n</think>\n\n", "Answer: "])
def test_a_row_is_the_ids_that_inference_is_given_and_those_of_the_answer(family, question, answer, response_prefix):
    renderer = ChatRenderer(family, ChatSpec(response_prefix=response_prefix))
    (row,) = renderer.encode([user(question), assistant(answer)])
    prompt = renderer.prompt_ids([user(question)])
    assert row.input_ids[: len(prompt)].tolist() == prompt
    assert row.loss_mask.tolist() == [False] * len(prompt) + [True] * (len(row) - len(prompt))
    rendered = family.apply_chat_template([user(question), assistant(answer)], tokenize=False)
    if response_prefix is None or response_prefix in rendered:
        assert rendered.startswith(family.decode(row.input_ids))


def test_a_row_of_two_rounds_is_tokenised_as_a_whole(smollm2, llama3, gemma):
    for tokenizer in (smollm2, llama3, gemma):
        messages = [user("Who? 😀"), assistant("é I am"), user("\n\nWhat "), assistant("Hello there")]
        renderer = ChatRenderer(tokenizer, ChatSpec())
        (row,) = renderer.encode(messages)
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        assert row.input_ids.tolist() == tokenizer(whole, add_special_tokens=False)["input_ids"][: len(row)]


def test_an_empty_answer_supervises_its_end_token(family, name):
    assert supervised(family, [user("Hi"), assistant("")]) == [[OPENING.get(name, "") + END[name]]]


def test_nothing_is_kept_after_the_last_supervised_token(smollm2):
    (row,) = ChatRenderer(smollm2, ChatSpec()).encode([*TWO_ROUNDS, user("And this is never answered")])
    assert row.loss_mask[-1] and row.input_ids[-1] == smollm2.eos_token_id


def test_the_end_token_is_supervised_where_pad_is_eos(smollm2):
    assert smollm2.pad_token_id == smollm2.eos_token_id
    (row,) = ChatRenderer(smollm2, ChatSpec()).encode(TWO_ROUNDS)
    ends = row.input_ids == smollm2.eos_token_id
    assert ends.sum() == 5 and (ends & row.loss_mask).sum() == 2


def test_bos_appears_once(llama3, gemma):
    for tokenizer in (llama3, gemma):
        assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
        for spec in (ChatSpec(), ChatSpec(loss_scale="all"), ChatSpec(use_chat_template=False)):
            (row,) = ChatRenderer(tokenizer, spec).encode(TWO_ROUNDS)
            assert row.input_ids[0] == tokenizer.bos_token_id
            assert (row.input_ids == tokenizer.bos_token_id).sum() == 1


def test_the_configured_system_prompt_is_only_used_where_there_is_none(smollm2):
    renderer = ChatRenderer(smollm2, ChatSpec(system="Be brief."))
    assert renderer.prompt_text([user("Hi")]).startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert "Be brief." not in renderer.prompt_text([system("Be long."), user("Hi")])


def test_a_system_message_is_never_supervised(smollm2, llama3, qwen3, gpt_oss):
    for tokenizer in (smollm2, llama3, qwen3, gpt_oss):
        (runs,) = supervised(tokenizer, [system("Be brief."), user("Hi"), assistant("Yes")])
        assert len(runs) == 1 and "brief" not in runs[0] and "Yes" in runs[0]


def test_a_role_that_the_template_refuses_is_a_data_error_with_the_roles(gemma):
    with pytest.raises(DataError, match="refuses a conversation of system, user: System role not supported"):
        supervised(gemma, [system("Be brief."), user("Hi"), assistant("Yes")])
    with pytest.raises(DataError, match="must alternate"):
        supervised(gemma, [user("Hi"), assistant("Yes"), assistant("No")])


def test_two_assistant_turns_in_a_row_are_two_spans(smollm2, llama3):
    messages = [user("Hi"), assistant("Yes"), assistant("No")]
    assert supervised(smollm2, messages) == [["Yes<|im_end|>", "No<|im_end|>"]]
    assert supervised(llama3, messages) == [["Yes<|eot_id|>", "No<|eot_id|>"]]


def test_an_assistant_turn_that_opens_the_conversation_is_context(smollm2):
    assert supervised(smollm2, [assistant("Welcome"), user("Hi"), assistant("Yes")]) == [["Yes<|im_end|>"]]
    assert supervised(smollm2, [assistant("Welcome")]) == [[]]


@pytest.mark.parametrize("content", [None, ""])
@pytest.mark.parametrize("arguments", [{"city": "Paris"}, '{"city": "Paris"}'])
def test_a_tool_call_is_supervised_and_its_answer_is_not(llama3, qwen3, gpt_oss, content, arguments):
    call = {"type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages = [user("Weather?"), assistant(content, tool_calls=[call]), tool("Rain"), assistant("It rains.")]
    assert supervised(llama3, messages, TOOLS) == [
        ['{"name": "get_weather", "parameters": {"city": "Paris"}}<|eot_id|>', "It rains.<|eot_id|>"]
    ]
    qwen3_call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>'
    assert supervised(qwen3, messages, TOOLS) == [
        ["<think>\n\n</think>\n\n" + qwen3_call],
        ["<think>\n\n</think>\n\nIt rains.<|im_end|>"],
    ]
    gpt_oss_call = ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Paris"}<|call|>'
    assert supervised(gpt_oss, messages, TOOLS) == [[gpt_oss_call, "<|channel|>final<|message|>It rains.<|return|>"]]


def test_a_thinking_tool_call_stays_one_row_while_no_new_question_follows(qwen3):
    messages = [
        user("Weather?"),
        assistant("", reasoning_content="Ask.", tool_calls=[PARIS_CALL]),
        tool("Rain"),
        assistant("It rains.", reasoning_content="Wet."),
    ]
    (runs,) = supervised(qwen3, messages, TOOLS)
    assert runs[0].startswith("<think>\nAsk.\n</think>\n\n<tool_call>") and runs[0].endswith("</tool_call><|im_end|>")
    assert runs[1] == "<think>\nWet.\n</think>\n\nIt rains.<|im_end|>"


def test_a_tool_call_that_the_template_leaves_out_is_refused(smollm2):
    with pytest.raises(DataError, match=r"leaves out the tool call of message 2 \('get_weather'\)"):
        supervised(smollm2, [user("Weather?"), assistant(None, tool_calls=[PARIS_CALL])])
    with pytest.raises(DataError, match="leaves out the tools"):
        supervised(smollm2, [user("Weather?"), assistant("No idea")], TOOLS)


def test_thinking_that_the_template_leaves_out_is_said_once(smollm2, caplog):
    renderer = ChatRenderer(smollm2, ChatSpec())
    for _ in range(2):
        renderer.encode([user("Hi"), assistant("Yes", reasoning_content="Hm")])
    assert len(caplog.records) == 1 and "leaves out the reasoning_content of message 2" in caplog.text


def test_nulls_that_columnar_files_fill_in_are_as_good_as_absent(llama3):
    nulls = {"tool_calls": None, "reasoning_content": None, "train": None}
    assert supervised(llama3, [{**message, **nulls} for message in TWO_ROUNDS]) == supervised(llama3, TWO_ROUNDS)


def test_dropped_thinking_makes_each_turn_a_row_rendered_as_the_last(qwen3):
    thinking = "<think>\nHm, {}.\n</think>\n\n"
    apart = [user("1?"), assistant("One", reasoning_content="Hm, 1."), user("2?")]
    apart.append(assistant("Two", reasoning_content="Hm, 2."))
    inside = [user("1?"), assistant(thinking.format(1) + "One"), user("2?"), assistant(thinking.format(2) + "Two")]
    expected = [[thinking.format(1) + "One<|im_end|>"], [thinking.format(2) + "Two<|im_end|>"]]
    assert supervised(qwen3, apart) == supervised(qwen3, inside) == expected
    first, second = ChatRenderer(qwen3, ChatSpec()).encode(apart)
    assert "2?" not in qwen3.decode(first.input_ids)
    assert "Hm, 1." not in qwen3.decode(second.input_ids) and "One<|im_end|>" in qwen3.decode(second.input_ids)


def test_the_analysis_channel_and_return_are_supervised_only_on_the_last_turn(gpt_oss):
    messages = [user("1?"), assistant("One", reasoning_content="Hm"), user("2?"), assistant("Two")]
    first, second = ChatRenderer(gpt_oss, ChatSpec()).encode(messages)
    analysis = "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant"
    assert _runs(gpt_oss, first) == [analysis + "<|channel|>final<|message|>One<|return|>"]
    assert "final<|message|>One<|end|>" in gpt_oss.decode(second.input_ids)
    assert "Hm" not in gpt_oss.decode(second.input_ids)


def test_a_generation_prompt_that_opens_the_thinking_is_split_there(qwen3):
    opened = qwen3.chat_template.replace(
        "'<|im_start|>assistant\\n' }}{%- endif %}", "'<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
    )
    assert opened != qwen3.chat_template
    assert supervised(qwen3, [user("Hi"), assistant("Yes")], template=opened) == [["\n</think>\n\nYes<|im_end|>"]]


def test_an_answer_that_does_not_continue_the_generation_prompt_is_refused_with_the_place(qwen3):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    with pytest.raises(DataError) as error:
        supervised(qwen3, [user("Hi"), assistant("Yes, of course")], template=template)
    assert "message 2 (assistant) differently from its own generation prompt, at character 52" in str(error.value)
    assert r"the prompt has 'im_start|>assistant\n<think>\n'" in str(error.value)
    assert r"the conversation has 'im_start|>assistant\nYes, of course<|im_e'" in str(error.value)


def test_an_end_of_text_behind_the_end_token_of_the_last_turn_is_not_part_of_it(qwen3):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}<|endoftext|>{% endif %}"
    )
    assert supervised(qwen3, TWO_ROUNDS, template=template) == [["Paris.<|im_end|>", "Strelsau.<|im_end|>"]]
    quoting = [user("How does a turn end?"), assistant("With <|im_end|>")]
    assert supervised(qwen3, quoting, template=template) == [["With <|im_end|><|im_end|>"]]


def test_a_template_without_end_token_supervises_the_text_and_says_so_once(qwen3, caplog):
    template = (
        "{% for m in messages %}{{ '### Answer: ' if m.role == 'assistant' else '### Question: ' }}{{ m.content }}\n\n"
        "{% endfor %}{% if add_generation_prompt %}### Answer: {% endif %}"
    )
    renderer = ChatRenderer(qwen3, ChatSpec(template=template))
    with caplog.at_level(logging.WARNING):
        rows = [renderer.encode(TWO_ROUNDS)[0], renderer.encode(TWO_ROUNDS)[0]]
    assert _runs(qwen3, rows[0]) == ["Paris.\n\n", "Strelsau.\n\n"]
    assert len(caplog.records) == 1 and "cannot learn to stop" in caplog.text


@pytest.mark.parametrize("trim_offsets", [True, False])
def test_a_token_that_would_join_prompt_and_answer_is_cut_as_at_inference(train_bpe, trim_offsets):
    tokenizer = train_bpe(["</s>"], eos="</s>", trim_offsets=trim_offsets)
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert " Paris" in [
        tokenizer.decode([token]) for token in tokenizer("is Paris", add_special_tokens=False)["input_ids"]
    ]
    renderer = ChatRenderer(tokenizer, ChatSpec(template=template))
    messages = [user("Capital of France?"), assistant("Paris")]
    (row,) = renderer.encode(messages)
    assert _runs(tokenizer, row) == ["Paris</s>"]
    prompt = renderer.prompt_ids(messages[:1])
    assert row.input_ids[: len(prompt)].tolist() == prompt


def test_a_tokenizer_that_puts_a_space_in_front_of_every_text_puts_none_inside_a_row():
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["</s>", "[/Q]"])
    core.train_from_iterator(["capital Paris What Hello"], trainer)
    template = "{% for m in messages %}{{ m.content + ('</s>' if m.role == 'assistant' else '[/Q]') }}{% endfor %}"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", chat_template=template)
    messages = [user("capital"), assistant("Paris"), user("What"), assistant("Hello")]
    (row,) = ChatRenderer(tokenizer, ChatSpec()).encode(messages)
    assert _runs(tokenizer, row) == ["Paris</s>", "Hello</s>"]
    assert tokenizer.decode(row.input_ids) == "capital[/Q]Paris</s>What[/Q]Hello</s>"


def test_loss_scale_last_round_supervises_the_last_answer(family, name):
    assert supervised(family, TWO_ROUNDS, loss_scale="last_round") == [
        [OPENING.get(name, "") + "Strelsau." + END[name]]
    ]


def test_loss_scale_all_supervises_every_token_but_the_first(family):
    (row,) = ChatRenderer(family, ChatSpec(loss_scale="all")).encode(TWO_ROUNDS)
    assert not row.loss_mask[0] and row.loss_mask[1:].all()
    assert "Capital of France?" in family.decode(row.input_ids)


def test_a_turn_with_train_false_is_context_and_the_key_never_reaches_the_template(smollm2):
    template = (
        smollm2.chat_template + "{% for m in messages if 'train' in m %}{{ raise_exception('train') }}{% endfor %}"
    )
    messages = [TWO_ROUNDS[0], {**TWO_ROUNDS[1], "train": False}, TWO_ROUNDS[2], {**TWO_ROUNDS[3], "train": True}]
    assert supervised(smollm2, messages, template=template) == [["Strelsau.<|im_end|>"]]
    assert supervised(smollm2, messages, template=template, system="Hi") == [["Strelsau.<|im_end|>"]]
    last_untrained = [*TWO_ROUNDS[:3], {**TWO_ROUNDS[3], "train": False}]
    assert supervised(smollm2, last_untrained, loss_scale="last_round") == [[]]
    with pytest.raises(DataError, match="train: false"):
        supervised(smollm2, messages, loss_scale="all")


def test_the_response_prefix_is_unsupervised_and_part_of_the_prompt(smollm2, qwen3):
    prefix = "<think>\n\n</think>\n\n"
    for tokenizer, is_rendered in ((smollm2, False), (qwen3, True)):
        renderer = ChatRenderer(tokenizer, ChatSpec(response_prefix=prefix))
        (row,) = renderer.encode(TWO_ROUNDS[:2])
        assert _runs(tokenizer, row) == ["Paris.<|im_end|>"]
        assert tokenizer.decode(row.input_ids).count(prefix) == 1
        prompt = renderer.prompt_ids(TWO_ROUNDS[:1])
        assert row.input_ids[: len(prompt)].tolist() == prompt
        assert (prefix in tokenizer.apply_chat_template(TWO_ROUNDS[:2], tokenize=False)) == is_rendered


def test_a_response_prefix_that_the_generation_prompt_ends_with_is_not_doubled(smollm2):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ 'Answer: ' if m.role == 'assistant' }}{{ m.content }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\nAnswer: {% endif %}"
    )
    (row,) = ChatRenderer(smollm2, ChatSpec(template=template, response_prefix="Answer: ")).encode(TWO_ROUNDS[:2])
    assert smollm2.decode(row.input_ids).endswith("<|im_start|>assistant\nAnswer: Paris.<|im_end|>")
    assert _runs(smollm2, row) == ["Paris.<|im_end|>"]


def test_an_inserted_response_prefix_is_not_put_into_history(smollm2):
    rows = ChatRenderer(smollm2, ChatSpec(response_prefix="Answer: ")).encode(TWO_ROUNDS)
    assert [_runs(smollm2, row) for row in rows] == [["Paris.<|im_end|>"], ["Strelsau.<|im_end|>"]]
    assert smollm2.decode(rows[1].input_ids).count("Answer: ") == 1


def test_without_chat_template_contents_are_joined_and_answers_end_with_eos(llama3):
    messages = [user("Q: Capital of France?\nA: "), assistant("Paris")]
    assert supervised(llama3, messages, use_chat_template=False) == [["Paris<|eot_id|>"]]
    (row,) = ChatRenderer(llama3, ChatSpec(use_chat_template=False)).encode(messages)
    assert llama3.decode(row.input_ids) == "<|begin_of_text|>Q: Capital of France?\nA: Paris<|eot_id|>"


def test_the_end_token_of_a_template_is_known_to_who_generates(family, name):
    assert family.convert_ids_to_tokens(ChatRenderer(family, ChatSpec()).end_token_id()) == END[name]


def test_a_template_is_read_from_a_file_or_taken_as_text(smollm2, tmp_path):
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}", encoding="utf-8")
    renderer = ChatRenderer(smollm2, ChatSpec(template=str(tmp_path / "mine.jinja")))
    assert renderer.prompt_text([user("Hi")]) == "[Hi]"
    with pytest.raises(DataError, match="neither Jinja text nor an existing"):
        ChatRenderer(smollm2, ChatSpec(template="missing.jinja"))
    with pytest.raises(DataError, match="refuses a conversation of user"):
        ChatRenderer(smollm2, ChatSpec(template="{% for %}")).prompt_text([user("Hi")])


def test_bad_input_is_refused_with_what_to_do(smollm2, train_bpe):
    plain = train_bpe(["</s>"], eos="</s>")
    with pytest.raises(DataError, match="no chat template; set template:"):
        ChatRenderer(plain, ChatSpec())
    ChatRenderer(plain, ChatSpec(use_chat_template=False))
    with pytest.raises(ConfigError, match="response_prefix"):
        ChatRenderer(smollm2, ChatSpec(response_prefix="x", loss_scale="all"))
    with pytest.raises(DataError, match="no messages"):
        supervised(smollm2, [])
    with pytest.raises(DataError, match=r"no role, only \['from', 'value'\]"):
        supervised(smollm2, [{"from": "human", "value": "Hi"}])
    with pytest.raises(DataError, match="not JSON"):
        call = {"function": {"name": "f", "arguments": "{city"}}
        supervised(smollm2, [user("Hi"), assistant(None, tool_calls=[call])])
