"""Finding, loading and asking what a run left behind, with a tiny random model."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from surogate.cli import answering, generate
from surogate.config.parts import ChatSpec
from surogate.errors import ModelError
from surogate.models.inference import find_model, generate_ids, load_for_inference

TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m.role + ':' + m.content }}<|over|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    special = ["<eos>", "<|turn|>", "<|over|>"]
    vocab = {token: i for i, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens(special)
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", chat_template=TEMPLATE).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocab), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, bos_token_id=None, eos_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_adapter(model_dir, folder, seed: int):
    torch.manual_seed(seed)
    base = LlamaForCausalLM.from_pretrained(model_dir)
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(base, lora).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter_dir(model_dir, tmp_path_factory):
    return make_adapter(model_dir, tmp_path_factory.mktemp("adapter"), seed=1)


@pytest.fixture
def run_dir(model_dir, tmp_path):
    make_adapter(model_dir, tmp_path / "adapter", seed=2)
    (tmp_path / "surogate.yaml").write_text(f"model: {model_dir}\nsystem: Be brief.\nlearning_rate: 1e-4\n")
    return tmp_path


def answers(capsys, *argv) -> str:
    assert generate.main([str(arg) for arg in argv]) == 0
    return capsys.readouterr().out


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(10)[None]).logits


def test_a_model_answers_as_transformers_does(model_dir, capsys):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
    prompt = tokenizer("<|turn|>user:Hi<|over|><|turn|>assistant:", return_tensors="pt", add_special_tokens=False)
    model = LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    expected = model.generate(**prompt, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=[0, 2])
    text = tokenizer.decode(expected[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert answers(capsys, model_dir, "--prompt", "Hi", "--max_new_tokens", 12) == text + "\n"


def test_several_prompts_are_shown_above_their_answers(model_dir, capsys):
    one, two = (answers(capsys, model_dir, "--prompt", prompt, "--max_new_tokens", 3) for prompt in ("Hi", "Yo"))
    both = answers(capsys, model_dir, "--prompt", "Hi", "--prompt", "Yo", "--max_new_tokens", 3)
    assert both == f"> Hi\n{one}\n> Yo\n{two}\n"


def test_sampling_follows_the_seed(model_dir, capsys):
    def sample(seed):
        return answers(capsys, model_dir, "--prompt", "Hi", "--temperature", 1, "--seed", seed, "--max_new_tokens", 20)

    assert sample(1) == sample(1) != sample(2)


def test_generation_stops_at_the_end_token_of_the_template(model_dir):
    model = load_for_inference(find_model(str(model_dir)))
    first, second = generate_ids(model, [1, 5, 6], set(), max_new_tokens=2)
    assert generate_ids(model, [1, 5, 6], {second}, max_new_tokens=9) == [first, second]
    parser = argparse.ArgumentParser()
    answering.add_options(parser, max_new_tokens=1)
    assert answering.Answerer(parser.parse_args([str(model_dir)]))._ends == {0, 2}


def test_an_answer_ends_where_the_model_has_no_more_positions(model_dir):
    model = load_for_inference(find_model(str(model_dir)))
    assert len(generate_ids(model, [5] * 126, set(), max_new_tokens=50)) <= 2
    with pytest.raises(ModelError, match="128 tokens, which fills all positions"):
        generate_ids(model, [5] * 128, set(), max_new_tokens=1)


def test_an_adapter_folder_brings_its_base(model_dir, adapter_dir):
    found = find_model(str(adapter_dir))
    assert (found.base, found.adapters, found.tokenizer) == (str(model_dir), (adapter_dir,), str(model_dir))
    peft = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(model_dir), adapter_dir)
    model = load_for_inference(found)
    assert torch.allclose(logits(model), logits(peft), atol=1e-4)
    assert not torch.allclose(logits(model), logits(load_for_inference(find_model(str(model_dir)))), atol=1e-2)
    assert not model.training


def test_a_run_brings_its_model_its_adapter_and_its_system_prompt(model_dir, run_dir, capsys):
    found = find_model(str(run_dir))
    assert (found.base, found.adapters) == (str(model_dir), (run_dir / "adapter",))
    assert found.chat == ChatSpec(system="Be brief.")
    from_run = answers(capsys, run_dir, "--prompt", "Hi", "--max_new_tokens", 8)
    adapter = run_dir / "adapter"
    assert from_run == answers(capsys, adapter, "--prompt", "Hi", "--max_new_tokens", 8, "--system", "Be brief.")
    assert from_run != answers(capsys, adapter, "--prompt", "Hi", "--max_new_tokens", 8)


def test_another_adapter_takes_the_place_of_the_runs_own(model_dir, run_dir, adapter_dir):
    for location in (run_dir, run_dir / "adapter", model_dir):
        found = find_model(str(location), str(adapter_dir))
        assert (found.base, found.adapters) == (str(model_dir), (adapter_dir,))
    shutil.rmtree(run_dir / "adapter")
    assert find_model(str(run_dir), str(adapter_dir)).base == str(model_dir)


def test_generate_takes_an_adapter_with_or_without_a_name(model_dir, run_dir, adapter_dir, capsys):
    def with_adapter(*arguments):
        return answers(capsys, model_dir, "--prompt", "Hi", "--max_new_tokens", 8, *arguments)

    assert with_adapter("--adapter", adapter_dir) == with_adapter("--adapter", f"mine={adapter_dir}") != with_adapter()
    assert with_adapter("--adapter", run_dir) == answers(capsys, run_dir, "--prompt", "Hi", "--max_new_tokens", 8)


def test_an_adapter_that_the_run_merged_into_its_base_lies_below_its_own(run_dir, adapter_dir, model_dir):
    below = run_dir / "adapter/stacked_on"
    shutil.copytree(adapter_dir, below)
    found = find_model(str(run_dir))
    assert found.adapters == (below, run_dir / "adapter")
    assert find_model(str(model_dir), str(run_dir / "adapter")).adapters == found.adapters
    assert find_model(str(model_dir), str(run_dir)).adapters == found.adapters
    assert find_model(str(run_dir), str(adapter_dir)).adapters == (adapter_dir,)  # which knows nothing of the merge
    base = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(model_dir), adapter_dir).merge_and_unload()
    expected = PeftModel.from_pretrained(base, run_dir / "adapter")
    assert torch.allclose(logits(load_for_inference(found)), logits(expected), atol=1e-4)


def test_the_tokenizer_beside_an_adapter_is_preferred(run_dir, model_dir):
    PreTrainedTokenizerFast.from_pretrained(model_dir).save_pretrained(run_dir / "adapter")
    assert find_model(str(run_dir)).tokenizer == str(run_dir / "adapter")


@pytest.mark.parametrize("header, keys", [("pt", ""), ("pt", "lora: false\n"), ("sft", "lora: false\n")])
def test_a_run_that_trained_all_weights_is_its_model_folder(model_dir, tmp_path, header, keys):
    keys += "model: gone\nmax_model_len: 512\nrope_scaling: yarn\nsystem: Be brief.\n"
    (tmp_path / "surogate.yaml").write_text(f"# What `surogate {header}` was asked for; every other key ...\n{keys}")
    with pytest.raises(ModelError, match="a run writes it when it ends"):
        find_model(str(tmp_path))
    shutil.copytree(model_dir, tmp_path / "model")
    found = find_model(str(tmp_path))
    assert (found.base, found.adapters, found.tokenizer) == (str(tmp_path / "model"), (), str(tmp_path / "model"))
    assert found.chat == ChatSpec(system="Be brief.")
    assert torch.equal(logits(load_for_inference(found)), logits(load_for_inference(find_model(str(model_dir)))))


def test_a_pretraining_run_with_an_adapter_is_base_and_adapter(model_dir, run_dir):
    (run_dir / "surogate.yaml").write_text(f"# What `surogate pt` was asked for\nmodel: {model_dir}\nlora: true\n")
    assert find_model(str(run_dir)).adapters == (run_dir / "adapter",)


def test_an_adapter_of_another_run_goes_on_top_of_all_weights(model_dir, run_dir, tmp_path):
    full = tmp_path / "full"
    shutil.copytree(model_dir, full / "model")
    (full / "surogate.yaml").write_text("# What `surogate sft` was asked for\nlora: false\n")
    found = find_model(str(full), str(run_dir))
    assert (found.base, found.adapters) == (str(full / "model"), (run_dir / "adapter",))


def test_the_tokenizer_that_a_run_was_given_is_used(run_dir):
    keys = run_dir / "surogate.yaml"
    keys.write_text(keys.read_text() + "tokenizer: elsewhere\n")
    assert find_model(str(run_dir)).tokenizer == "elsewhere"


def test_what_holds_no_model_is_refused_with_what_to_do(model_dir, tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        find_model("./nowhere")
    (tmp_path / "surogate.yaml").write_text(f"model: {model_dir}\n")
    with pytest.raises(ModelError, match="a run writes it when it ends"):
        find_model(str(tmp_path))
    with pytest.raises(ModelError, match="not an adapter folder"):
        find_model(str(model_dir), str(model_dir))
    with pytest.raises(ModelError, match="no adapter folder"):
        generate.main([str(model_dir), "--prompt", "Hi", "--adapter", str(model_dir)])
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="names no base model"):
        find_model(str(tmp_path / "adapter"))


def test_a_model_without_chat_template_continues_the_prompt(model_dir, tmp_path, capsys, caplog):
    LlamaForCausalLM.from_pretrained(model_dir).save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer("Once", add_special_tokens=False)["input_ids"]
    new = generate_ids(load_for_inference(find_model(str(tmp_path))), ids, {0}, max_new_tokens=5)
    expected = tokenizer.decode(new, skip_special_tokens=True).strip()
    assert answers(capsys, tmp_path, "--prompt", "Once", "--max_new_tokens", 5) == expected + "\n"
    assert "continued as plain text" in caplog.text


@pytest.mark.parametrize("verb", ["chat", "generate"])
def test_help_answers_without_torch_and_shows_an_example(verb):
    code = (
        f"import sys\nfrom surogate.cli.{verb} import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"surogate {verb} output" in done.stdout


@pytest.mark.parametrize("bad", [["--temperature", "-1"], ["--max_new_tokens", "0"]])
def test_a_number_out_of_range_is_refused(bad, capsys):
    with pytest.raises(SystemExit) as end:
        generate.main(["model", "--prompt", "Hi", *bad])
    assert end.value.code == 2 and bad[0] in capsys.readouterr().err
