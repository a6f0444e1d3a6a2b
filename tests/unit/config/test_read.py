from __future__ import annotations

import pytest

from surogate.config.parts import DatasetSpec
from surogate.config.read import likely_verb, read_config
from surogate.errors import ConfigError


def test_a_minimal_file_takes_every_default(read):
    config = read().config
    assert (config.model, config.lora, config.learning_rate) == ("some/model", True, 2e-4)
    assert config.datasets == [DatasetSpec(path="rows.jsonl")]


def test_scientific_notation_is_a_number(read):
    assert read("learning_rate: 2e-4\nadamw_epsilon: 1e-8\n").config.learning_rate == 2e-4


def test_values_are_plain_python_numbers(read):
    config = read("lora_rank: 4\nwarmup_ratio: 0\nmax_length: 8\n").config
    assert (type(config.lora_rank), type(config.warmup_ratio), type(config.max_length)) == (int, float, int)


def test_overrides_win_over_the_file_in_both_notations(read):
    config = read("lora_rank: 4\n", "--lora_rank", "8", "--max_steps=-1", "--use_dora", "true").config
    assert (config.lora_rank, config.max_steps, config.use_dora) == (8, -1, True)


def test_a_negative_number_is_a_value_and_not_an_option(read):
    assert read("", "--max_steps", "-1").config.max_steps == -1


def test_a_list_is_written_as_yaml_on_the_command_line(read):
    assert read("", "--lora_target_modules", "[q_proj, v_proj]").config.lora_target_modules == ["q_proj", "v_proj"]


def test_an_override_reaches_into_a_dataset_and_can_add_one(read, tmp_path):
    (tmp_path / "b.jsonl").touch()
    config = read("", "--datasets.0.samples", "3", "--datasets.1.path", "b.jsonl").config
    assert [(spec.path, spec.samples) for spec in config.datasets] == [("rows.jsonl", 3), ("b.jsonl", None)]


def test_text_stays_text_on_the_command_line(read):
    assert read("", "--run_name", "0123").config.run_name == "0123"


def test_dashes_and_underscores_are_the_same_in_values(read):
    assert read("loss_scale: last-round\n").config.loss_scale == "last_round"
    assert read("recipe: fp8-hybrid\nfp8_margin: 1\nfp8_amax_compute_algo: most-recent\n").config.fp8_margin == 1


def test_second_names_of_the_contract_set_the_first(read):
    config = read("torch_dtype: float32\nmin_lr_ratio: 0.1\npadding_free: false\n").config
    assert (config.model_dtype, config.final_lr_fraction, config.sample_packing) == ("float32", 0.1, False)


def test_two_names_of_one_key_may_agree_but_not_differ(read, problems):
    assert read("min_lr_ratio: 0.1\nfinal_lr_fraction: 0.1\n").config.final_lr_fraction == 0.1
    assert problems("min_lr_ratio: 0.1\nfinal_lr_fraction: 0.2\n") == [
        "cfg.yaml:5: final_lr_fraction and min_lr_ratio mean the same and differ. Keep one of them."
    ]


def test_each_value_knows_where_it_came_from(read):
    origins = read("lora_rank: 4\nsave_steps: 9\n", "--lora_rank", "8", "--datasets.0.weight", "2").origins
    assert origins["lora_rank"] == "command line"
    assert origins["save_steps"] == "cfg.yaml:5"
    assert origins["datasets"] == "cfg.yaml:2"
    assert "learning_rate" not in origins


def test_all_problems_come_together_in_the_order_of_the_file(problems):
    found = problems("learnign_rate: 1e-4\nlora_rank: many\nlong_context: true\n", "--lorra_rank", "3")
    assert found == [
        "cfg.yaml:4: learnign_rate is not a key. Did you mean learning_rate?",
        "cfg.yaml:5: lora_rank must be a whole number above 0, got 'many'.",
        "cfg.yaml:6: long_context is refused: this is planned for a later release. Remove the key.",
        "command line: lorra_rank is not a key. Did you mean lora_rank?",
    ]


def test_one_problem_stands_alone(read):
    with pytest.raises(ConfigError, match=r"^cfg.yaml:4: zzz is not a key\. `surogate sft --help` lists all keys\.$"):
        read("zzz: 1\n")


@pytest.mark.parametrize(
    ("alias", "use"),
    [("lr", "learning_rate"), ("epochs", "num_epochs"), ("load_in_4bit", "qlora_bnb"), ("bf16", "recipe: bf16")],
)
def test_a_name_of_another_trainer_gets_a_hint(problems, alias, use):
    assert problems(f"{alias}: 1\n") == [f"cfg.yaml:4: {alias} is not a key here. Use {use}."]


def test_an_unknown_key_inside_a_dataset_names_its_neighbour(problems):
    whole = "model: m\ndatasets:\n  - path: rows.jsonl\n  - path: rows.jsonl\n    pth: x\n"
    assert problems(whole=whole) == ["cfg.yaml:5: datasets[1].pth is not a key. Did you mean datasets[1].path?"]


def test_a_problem_in_one_dataset_does_not_hide_those_of_others(problems):
    whole = "model: m\ndatasets:\n  - path: rows.jsonl\n    pth: x\n  - path: nope.jsonl\n    samples: few\n"
    found = problems(whole=whole)
    assert [line.split(" ")[0] for line in found] == ["cfg.yaml:4:", "cfg.yaml:5:", "cfg.yaml:6:"]
    assert "'nope.jsonl' does not exist" in found[1]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("lora_rank: 0", "lora_rank must be a whole number above 0, got 0."),
        ("lora_rank: 2.5", "lora_rank must be a whole number above 0, got 2.5."),
        ("lora_rank: true", "lora_rank must be a whole number above 0, got true."),
        ("max_steps: -2", "max_steps must be a whole number above 0, or -1, got -2."),
        ("learning_rate: .inf", "learning_rate must be a number above 0, got inf."),
        ("learning_rate: .nan", "learning_rate must be a number above 0, got nan."),
        ("warmup_ratio: 2", "warmup_ratio must be a number from 0 to 1, got 2."),
        ("lora_dropout: 1", "lora_dropout must be a number from 0 to below 1, got 1."),
        ("recompute: 3", "recompute must be true or false, got 3."),
        ("output_dir: ''", "output_dir must be text that is not empty, got ''."),
        ("lr_scheduler_type: step", "lr_scheduler_type must be linear, cosine, constant or wsd, got 'step'."),
        ("lmhead_chunks: few", "lmhead_chunks must be a whole number above 0 or auto, got 'few'."),
        ("lora_target_modules: 3", "lora_target_modules must be a list such as [a, b], got 3."),
        ("report_to: aim", "report_to must be a list such as [wandb, tensorboard], got ['aim']."),
        ("learning_rate:", "learning_rate has no value. Remove the line to use the default, 0.0002."),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(problems, line, sentence):
    assert problems(line + "\n") == [f"cfg.yaml:4: {sentence}"]


def test_what_may_be_null_can_be_null(read):
    assert read("max_length:\nrun_name: null\n").config.max_length is None


def test_required_keys_are_named_with_their_meaning(problems):
    found = problems(whole="lora_rank: 3\n")
    assert found[0].startswith("cfg.yaml: model is missing. Hub id, local folder")
    assert found[1].startswith("cfg.yaml: datasets is missing.")


@pytest.mark.parametrize("value", ["rows.jsonl", "3", "[rows.jsonl]"])
def test_datasets_that_are_no_list_of_mappings_are_refused(problems, value):
    assert "mapping" in problems(whole=f"model: m\ndatasets: {value}\n")[0]


@pytest.mark.parametrize("key", ["report_to", "lora_target_modules", "modules_to_save", "wandb_tags"])
def test_one_word_where_a_list_is_expected_becomes_a_list(read, key, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    more = "report_to: [wandb]\n" if key == "wandb_tags" else ""
    for resolved in (read(f"{more}{key}: wandb\n"), read(more, f"--{key}", "wandb"), read(more, f"--{key}", "[wandb]")):
        assert getattr(resolved.config, key) == ["wandb"]


def test_one_mapping_where_a_list_is_expected_becomes_a_list(read, problems):
    for resolved in (
        read(whole="model: m\ndatasets: {path: rows.jsonl}\nvalidation_datasets: {path: rows.jsonl}\n"),
        read("validation_datasets: [{path: rows.jsonl}]\n", "--datasets", "{path: rows.jsonl}"),
        read("validation_datasets: {path: gone}\n", "--validation_datasets.0.path", "rows.jsonl"),
    ):
        assert [spec.path for spec in resolved.config.datasets] == ["rows.jsonl"]
        assert [spec.path for spec in resolved.config.validation_datasets] == ["rows.jsonl"]
    assert problems(whole="model: m\ndatasets:\n  pth: rows.jsonl\n")[0].startswith(
        "cfg.yaml:2: datasets[0].pth is not"
    )


@pytest.mark.parametrize("text", ["2e-4", "'2e-4'", '"0.0002"'])
def test_a_number_in_quotes_is_a_number(read, text):
    assert read(f"learning_rate: {text}\n").config.learning_rate == 2e-4


def test_a_key_that_is_set_twice_is_refused_at_any_depth(problems):
    assert problems("lora_rank: 1\nlora_rank: 2\n") == ["cfg.yaml:5: lora_rank is set twice. Keep one of the lines."]
    whole = "model: m\ndatasets:\n  - path: rows.jsonl\n    path: rows.jsonl\n"
    assert problems(whole=whole) == ["cfg.yaml:4: datasets[0].path is set twice. Keep one of the lines."]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [a\nb: c\n", r"cfg.yaml:2: not valid YAML"),
        ("- a\n", r"cfg.yaml must hold `key: value` lines"),
        ("model: !!python/object/apply:os.system [true]\n", r"cfg.yaml:1: not valid YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_and_never_executed(read, text, message):
    with pytest.raises(ConfigError, match=message):
        read(whole=text)


def test_a_missing_file_is_one_sentence():
    with pytest.raises(ConfigError, match=r"^nope.yaml cannot be read: No such file or directory\.$"):
        read_config("sft", "nope.yaml")


def test_an_empty_file_lacks_what_is_required(problems):
    assert len(problems(whole="")) == 2


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("stray",), "'stray' stands alone. Overrides are written --key value."),
        (("--use_dora",), "--use_dora has no value. Write --use_dora value, for example --use_dora true."),
        (("--datasets.7.path", "x"), "--datasets.7 does not exist. List items are counted from 0"),
        (("--model.x", "y"), "--model.x does not exist"),
        (("--lora_rank.x=1",), "lora_rank must be a whole number above 0, got {'x': '1'}."),
    ],
)
def test_an_override_that_leads_nowhere_is_told(problems, overrides, sentence):
    assert problems("", *overrides)[0].startswith(f"command line: {sentence}")


def test_the_hub_token_does_not_show_when_the_configuration_is_printed(read):
    assert "hf_secret" not in repr(read("hub_token: hf_secret\n").config)


@pytest.mark.parametrize(
    ("lines", "verb"),
    [
        ("datasets: [{path: a, type: text}]", "pt"),
        ("datasets: {path: a, type: text}", "pt"),
        ("from_scratch: true", "pt"),
        ("datasets: [{path: a, type: text}, {path: b}]", "sft"),
        ("datasets: [{path: a}]", "sft"),
        ("datasets: a", "sft"),
        ("", "sft"),
    ],
)
def test_the_verb_is_guessed_from_what_only_pretraining_has(tmp_path, lines, verb):
    (tmp_path / "cfg.yaml").write_text(lines + "\n")
    assert likely_verb(tmp_path / "cfg.yaml") == verb
