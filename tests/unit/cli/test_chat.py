"""The conversation and its adapters, with a tiny random model."""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from support.tiny import save_tiny_model
from support.word_tokenizer import save_word_tokenizer
from transformers import LlamaForCausalLM

from surogate.cli import adapters, chat, generate
from surogate.cli.adapters import SwappingAnswerer, offered
from surogate.errors import ConfigError, ModelError
from surogate.models import adapter_switch
from surogate.models.inference import find_model, load_for_inference

WORDS = [f"w{i}" for i in range(80)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_word_tokenizer(save_tiny_model(tmp_path_factory.mktemp("base")), WORDS)


def make_adapter(base: Path, folder: Path, seed: int, on: tuple[Path, ...] = (), **changes: Any) -> Path:
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM.from_pretrained(base)
    for lower in on:
        model = PeftModel.from_pretrained(model, lower).merge_and_unload()
    values = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, **changes}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **values))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    for name, parameter in adapted.named_parameters():
        if "modules_to_save" in name or "magnitude" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@pytest.fixture(scope="module")
def shelf(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of adapters, and of runs, of one base."""
    folder = tmp_path_factory.mktemp("shelf")
    make_adapter(base, folder / "plain", 1)
    make_adapter(base, folder / "dora", 2, use_dora=True)
    make_adapter(base, folder / "norms", 3, modules_to_save=["norm"], target_modules=["v_proj"], use_rslora=True)
    for name, changes in {"stacked": {}, "stacked_dora": {"use_dora": True}}.items():
        make_adapter(base, folder / name / "adapter", 4, on=(folder / "plain",), **changes)
        shutil.copytree(folder / "plain", folder / name / "adapter/stacked_on")
        keys = f"model: {base}\nadapter_path: {folder / 'plain'}\nsystem: w7 w8\n"
        (folder / name / "surogate.yaml").write_text(f"# What `surogate sft` was asked for\n{keys}")
    make_adapter(base, folder / "head", 5, target_modules=["q_proj", "lm_head"])
    make_adapter(base, folder / "whole_head", 6, modules_to_save=["lm_head"])
    return folder


NAMES = ["plain", "dora", "norms", "stacked", "stacked_dora", "head", "whole_head"]


def answerer(location: Path, *adapters: str, **changes: Any) -> SwappingAnswerer:
    values = {"system": None, "max_new_tokens": 8, "temperature": 0.0, "seed": 1, **changes}
    return SwappingAnswerer(argparse.Namespace(location=str(location), adapter=list(adapters), **values))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(torch.arange(1, 12)[None]).logits


def test_after_a_swap_the_model_is_that_of_a_fresh_load(base: Path, shelf: Path) -> None:
    fresh = {name: logits(load_for_inference(find_model(str(base), str(shelf / name)))) for name in NAMES}
    fresh["none"] = logits(load_for_inference(find_model(str(base))))
    talk = answerer(base, str(shelf))
    assert set(talk.offers) == set(NAMES)
    # Every adapter after every other, those that cannot lie side by side included.
    for name in ["plain", "none", "dora", "norms", "none", "stacked", "plain", "stacked_dora", "dora", "head",
                 "stacked", "whole_head", "none", "head", "norms", "stacked_dora", "none"]:  # fmt: skip
        talk.swap(name)
        torch.testing.assert_close(logits(talk._model), fresh[name], atol=1e-4, rtol=1e-4)
    different = [logits_.flatten() for logits_ in fresh.values()]
    assert torch.pdist(torch.stack(different)).min() > 1


def test_a_swapped_answer_is_that_of_a_chat_of_its_own(base: Path, shelf: Path) -> None:
    asked = [{"role": "user", "content": "w1 w2 w3"}]
    talk = answerer(base, str(shelf))
    for name in ("stacked", "plain", "stacked"):  # whose run has a system prompt
        talk.swap(name)
        location = shelf / name if name == "stacked" else base
        alone = answerer(location, *([] if name == "stacked" else [str(shelf / name)]))
        assert talk.answer(asked) == alone.answer(asked) and talk.active == name
        assert talk._renderer.prompt_ids(asked) == alone._renderer.prompt_ids(asked)


def test_a_swap_loads_and_merges_nothing_a_second_time(
    base: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = answerer(base, *(str(shelf / name) for name in ("plain", "dora", "stacked")))
    for name in talk.offers:
        talk.swap(name)
    model = talk._model
    monkeypatch.setattr(adapter_switch.lora, "load_adapter", None)
    monkeypatch.setattr(adapter_switch, "load_for_inference", None)
    for name in (*talk.offers, "none"):
        talk.swap(name)
        assert talk._model is model


def test_what_cannot_be_added_up_is_said(base: Path, shelf: Path, caplog: pytest.LogCaptureFixture) -> None:
    talk = answerer(base, str(shelf / "stacked"))
    assert not caplog.text
    talk.swap(str(shelf / "stacked_dora"))
    assert "loaded anew" in caplog.text and "DoRA measures" in caplog.text


def test_the_runs_own_adapter_is_used_first_unless_another_is_given(base: Path, shelf: Path) -> None:
    own = answerer(shelf / "stacked")
    assert own.active == "stacked" and list(own.offers) == ["stacked"]
    own.swap("none")
    torch.testing.assert_close(logits(own._model), logits(load_for_inference(find_model(str(base)))))
    other = answerer(shelf / "stacked", f"other={shelf / 'dora'}")
    assert other.active == "other" and list(other.offers) == ["other", "stacked"]
    other.swap("stacked")
    own.swap("stacked")
    assert torch.equal(logits(other._model), logits(own._model))
    assert answerer(base).active == "none"


def test_an_adapter_of_another_base_or_tokenizer_is_refused_and_the_one_before_stays(
    base: Path, shelf: Path, tmp_path: Path
) -> None:
    other = save_word_tokenizer(save_tiny_model(tmp_path / "other", seed=1), WORDS)
    make_adapter(other, tmp_path / "strange", 1)
    words = make_adapter(base, tmp_path / "words", 1)
    save_word_tokenizer(words, WORDS[::-1])
    talk = answerer(base, str(shelf / "plain"))
    before = logits(talk._model)
    with pytest.raises(ModelError, match=r"was trained on .*other, and this model is .*base"):
        talk.swap(str(tmp_path / "strange"))
    with pytest.raises(ModelError, match="another tokenizer"):
        talk.swap(str(words))
    with pytest.raises(ModelError, match=r"there is no adapter nothing\. Allowed are plain, none, and"):
        talk.swap("nothing")
    assert talk.active == "plain" and list(talk.offers) == ["plain"]
    assert torch.equal(logits(talk._model), before)
    with pytest.raises(ModelError, match="another tokenizer"):
        answerer(base, str(words))
    with pytest.raises(ModelError, match="was trained on"):
        generate.main([str(base), "--prompt", "w1", "--adapter", str(tmp_path / "strange")])


def test_a_copy_of_the_base_elsewhere_is_the_same_base(base: Path, shelf: Path, tmp_path: Path) -> None:
    copy = save_word_tokenizer(save_tiny_model(tmp_path / "copy"), WORDS)
    expected = logits(answerer(base, str(shelf / "plain"))._model)
    assert torch.equal(logits(answerer(copy, str(shelf / "plain"))._model), expected)


def test_an_adapter_that_does_not_fit_leaves_the_one_before(base: Path, shelf: Path, tmp_path: Path) -> None:
    small = save_tiny_model(tmp_path / "small", hidden_size=16)
    misfit = make_adapter(small, tmp_path / "misfit", 1)
    config = misfit / "adapter_config.json"
    config.write_text(config.read_text().replace(str(small), "moved/away/long/ago"))
    talk = answerer(base, str(shelf / "plain"))
    before = logits(talk._model)
    with pytest.raises(ModelError, match="does not fit"):
        talk.swap(str(misfit))
    assert torch.equal(logits(talk._model), before)


def test_names_come_from_folders_unless_given(shelf: Path, tmp_path: Path) -> None:
    assert list(offered([f"mine={shelf / 'plain'}", str(shelf / "dora"), str(shelf / "stacked" / "adapter")])) == [
        "mine", "dora", "stacked",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"plain cannot be called dora, which is .*dora already"):
        offered([str(shelf / "dora"), f"dora={shelf / 'plain'}"])
    with pytest.raises(ConfigError, match="the base without any"):
        offered([f"none={shelf / 'plain'}"])
    with pytest.raises(ConfigError, match="one name to several adapters: dora, head"):
        offered([f"all={shelf}"])
    with pytest.raises(ConfigError, match="holds several adapters: dora, head"):
        adapters.one_of(str(shelf))
    with pytest.raises(ModelError, match="no adapter folder"):
        offered([str(tmp_path)])


class FakeAnswerer:
    asked: list[list[str]]

    def __init__(self, options: Any) -> None:
        FakeAnswerer.asked = []
        self.offers, self.active = {"one": "a/one", "two": "a/two"}, "one"

    def swap(self, name: str) -> None:
        if name not in self.offers:
            raise ModelError(f"there is no adapter {name}")
        self.active = name

    def answer(self, messages: list[dict[str, str]], *, stream: bool) -> str:
        self.asked.append([message["content"] for message in messages])
        return f"A{len(self.asked)} of {self.active}"


def say(monkeypatch: pytest.MonkeyPatch, text: str) -> int:
    monkeypatch.setattr(adapters, "SwappingAnswerer", FakeAnswerer)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return chat.main(["model"])


def test_chat_reads_lines_keeps_the_conversation_and_forgets_it_on_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    assert say(monkeypatch, "one\n\ntwo\n/reset\nthree\n/exit\nfour\n") == 0
    assert FakeAnswerer.asked == [["one"], ["one", "A1 of one", "two"], ["three"]]


def test_chat_lists_and_swaps_adapters_and_the_conversation_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert say(monkeypatch, "hi\n/adapter two\n/adapter\n/adapters are what?\n") == 0
    assert FakeAnswerer.asked[1] == ["hi", "A1 of one", "/adapters are what?"]
    said = capsys.readouterr()
    assert said.err.splitlines() == ["adapter: two", "  one  a/one", "* two  a/two", "  none  the base alone"]
    assert said.out == ""  # where a pipe reads answers
    with pytest.raises(ModelError, match="no adapter three"):
        say(monkeypatch, "/adapter three\n")


def test_chat_prints_its_answers(base: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("w1\n"))
    assert chat.main([str(base), "--max_new_tokens", "12"]) == 0
    streamed = capsys.readouterr().out.strip()
    assert generate.main([str(base), "--prompt", "w1", "--max_new_tokens", "12"]) == 0
    assert streamed == capsys.readouterr().out.strip() != ""


def test_a_misspelt_command_is_not_sent_to_the_model(shelf, base, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("/help\n/exit\n"))
    assert chat.main([str(base)]) == 0
    shown = capsys.readouterr()
    assert "/help is no command: there are /adapter, /reset and /exit" in shown.err
    assert not shown.out.strip()
