from __future__ import annotations

import importlib.util

import pytest

CONTRADICTIONS = [
    ("max_length: 2000", "max_length 2000 is more than sequence_len 1024"),
    ("max_model_len: 512", "max_model_len 512 is less than sequence_len 1024"),
    ("rope_scaling: yarn", "rope_scaling: yarn needs max_model_len"),
    ("qlora_bnb: true\nlora: false", "qlora_bnb needs lora: true"),
    ("qlora_bnb: true\nqlora_fp8: true", "qlora_bnb and qlora_fp8 exclude each other"),
    ("qlora_bnb_block_size: 128", "qlora_bnb_block_size needs qlora_bnb: true"),
    ("qlora_fp8: true\nqlora_four_over_six: false", "qlora_four_over_six needs qlora_fp4: true"),
    ("recipe: fp7", "recipe must be one of bf16, fp8_hybrid, nvfp4, or the path of a YAML file, got 'fp7'"),
    ("recipe: mine.yaml", "mine.yaml cannot be read"),
    ("fp8_margin: 1", "fp8_margin needs recipe: fp8_hybrid; this run has recipe: bf16"),
    ("recipe: nvfp4\nfp8_amax_history: 8", "fp8_amax_history needs recipe: fp8_hybrid"),
    ("recipe: fp8_hybrid\nno_fp4_stochastic_rounding: true", "no_fp4_stochastic_rounding needs recipe: nvfp4"),
    ("recipe: fp8_hybrid\nmatmul_dtype: float32", "matmul_dtype needs recipe: bf16"),
    ("recipe_emulate: true", "recipe_emulate needs recipe: fp8_hybrid or nvfp4; bf16 computes everywhere"),
    ("recipe: nvfp4\nfp4_backend: scaled_mm\nrecipe_emulate: true", "fp4_backend: scaled_mm asks for the tensor core"),
    ("skip_quant_last_layers: 1", "skip_quant_last_layers needs one of qlora_bnb, qlora_fp8, qlora_fp4"),
    ("from_scratch: true", "from_scratch needs lora: false"),
    ("freeze_modules: [lm_head]", "freeze_modules needs lora: false"),
    ("master_dtype: fp32", "master_dtype needs lora: false"),
    ("lora: false\nlora_rank: 8", "lora_rank needs lora: true"),
    ("lora: false\nadapter_path: a/b", "adapter_path needs lora: true"),
    ("lora: false\nmerge_adapter: true", "merge_adapter needs lora: true"),
    ("lora: false\nmodel_dtype: fp32\nmaster_dtype: bf16", "master_dtype bfloat16 is no wider than model_dtype"),
    ("lora: false\nmodel_dtype: float16", "model_dtype: float16 needs master_dtype: float32"),
    ("tokenizer: ./gone", "tokenizer: './gone' does not exist"),
    ("adapter_init_mode: trainable", "adapter_init_mode: trainable needs adapter_path"),
    ("lora_target_modules: [q_proj]\nmodules_to_save: [q_proj]", "q_proj stands in lora_target_modules and in"),
    ("lora_target_modules: []", "lora_target_modules is empty"),
    ("init_lora_weights: loftq", "init_lora_weights: loftq is refused: it is planned for"),
    ("init_lora_weights: eva", "init_lora_weights: eva is refused: initialisation from the training data"),
    ("init_lora_weights: corda", "init_lora_weights: corda is refused: initialisation from the training data"),
    (
        "init_lora_weights: kaiming",
        "must be true, false, gaussian, pissa, pissa_niter_<number>, olora, orthogonal or mica",
    ),
    ("init_lora_weights: pissa_niter_0", "got 'pissa_niter_0'"),
    ("cooldown_steps: 5", "cooldown_steps needs lr_scheduler_type: wsd"),
    ("final_lr_fraction: 0.5\nlr_scheduler_type: constant", "final_lr_fraction needs a schedule that decays"),
    ("max_steps: 10\nwarmup_steps: 11", "do not fit into max_steps 10"),
    ("eval_steps: 5\nvalidation_split_ratio: 0", "eval_steps needs validation data"),
    ("epoch_adjustment: true", "epoch_adjustment needs lora: false"),
    ("lora: false\nepoch_adjustment: true\nmax_steps: 9", "epoch_adjustment sets num_epochs, and max_steps wins"),
    ("stall_abort_seconds: 600", "stall_abort_seconds 600 must be more than stall_seconds 600"),
    ("wandb_project: p", "wandb_project needs report_to: [wandb]"),
    ("sample_max_tokens: 7", "sample_max_tokens needs sample_prompts above 0"),
    ("sample_prompts: 2\nvalidation_split_ratio: 0", "sample_prompts takes its prompts from validation data"),
    ("sample_prompts: 2\nlora: false\nzero_level: 2", "Set sample_prompts: 0, or zero_level: 1"),
    ("template: none.jinja", "there is no file 'none.jinja'"),
    ("resume_from_checkpoint: gone", "there is no 'gone'"),
    ("adapter_path: ./gone", "adapter_path: './gone' does not exist"),
    ("adapter_path: .", "adapter_path: . holds no adapter_config.json"),
    ("zero_level: 3", "zero_level 3 shards the weights that train, and with lora: true these are a small adapter"),
    ("zero_level: 2\nlora: false\nrecipe: fp8_hybrid", "which recipe fp8_hybrid cannot work on yet"),
    ("zero_level: 2\nlora: false\nprecision_canary_steps: 5", "which the precision canary cannot compare"),
    ("zero_level: 2\nlora: false\noptimizer: normuon", "normuon needs whole matrices"),
    ("normuon_beta2: 0.9", "normuon_beta2 needs optimizer: normuon"),
    ("validation_datasets: [{path: gone.jsonl}]", "validation_datasets[0].path: 'gone.jsonl' does not exist"),
]


@pytest.mark.parametrize(("lines", "sentence"), CONTRADICTIONS)
def test_a_contradiction_is_told_at_the_line_of_a_key_that_is_in_it(problems, lines, sentence):
    matching = [problem for problem in problems(lines + "\n") if sentence in problem]
    assert len(matching) == 1
    assert matching[0].startswith(("cfg.yaml:4: ", "cfg.yaml:5: ", "cfg.yaml:6: "))


ACCEPTED = [
    "max_length: 1024",
    "max_model_len: 1024",
    "lora: false\nfreeze_modules: [embed_tokens]",
    "lora: false\nmodel_dtype: bf16\nmaster_dtype: fp32",
    "lora: false\nlora_rank: 16",
    "lora: false\nfrom_scratch: true",
    "truncation_strategy: split",
    "rope_scaling: yarn\nmax_model_len: 4096",
    "adapter_path: a/b",
    "lr_scheduler_type: wsd\ncooldown_steps: 5",
    "final_lr_fraction: 0.5\nlr_scheduler_type: cosine",
    "max_steps: 10\nwarmup_steps: 10",
    "validation_split_ratio: 0",
    "eval_steps: 5",
    "template: '{{ messages }}'",
    "init_lora_weights: false",
    "init_lora_weights: gaussian",
    "init_lora_weights: pissa",
    "init_lora_weights: pissa_niter_4",
    "init_lora_weights: olora",
    "init_lora_weights: orthogonal",
    "init_lora_weights: mica",
    "precision_canary_steps: 5",  # a hub repository may be quantised
    "precision_canary_steps: 5\nqlora_bnb: true",
    "precision_canary_steps: 5\nrecipe: nvfp4",
    "precision_canary_steps: 5\nmatmul_dtype: bfloat16",
]


@pytest.mark.parametrize("lines", ACCEPTED)
def test_what_can_run_is_accepted(read, lines):
    assert read(lines + "\n")


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("{}", "datasets[0] has no path"),
        ("{path: rows.jsonl, weight: 0}", "datasets[0].weight must be above 0"),
        ("{path: rows.jsonl, samples: 0}", "datasets[0].samples must be above 0"),
        ("{path: rows.jsonl, type: conversation, output_field: a}", "output_field belongs to type: instruction"),
        ("{path: rows.jsonl, type: instruction, text_field: a}", "text_field belongs to type: text"),
        ("{path: rows.jsonl, chosen_field: a}", "chosen_field belongs to type: preference"),
        ("{path: rows.jsonl, system_prompt_type: fixed}", "fixed needs system_prompt"),
        ("{path: rows.jsonl, system_prompt_type: field}", "field needs system_prompt_field"),
        ("{path: 'https://me:pw@host/rows.jsonl'}", "datasets[0].path holds credentials (https://host/rows.jsonl)"),
        ("{path: 'https://host/rows.jsonl?X-Amz-Signature=1'}", "holds credentials (https://host/rows.jsonl)"),
        ("{path: 'pkg://no_such_package/rows.jsonl'}", "is not installed"),
    ],
)
def test_a_dataset_that_cannot_be_read_as_described_is_told(problems, entry, sentence):
    found = problems(whole=f"model: m\ndatasets:\n  - {entry}\n")
    assert any(line.startswith("cfg.yaml:3: ") and sentence in line for line in found)


@pytest.mark.parametrize("url", ["s3://bucket/rows.jsonl", "https://host/rows.jsonl?raw=true"])
def test_a_data_set_may_be_a_url_and_a_model_may_not(read, problems, url):
    assert read(whole=f"model: m\ndatasets: [{{path: '{url}'}}]\n")
    assert "model: 's3://bucket/m' cannot be read" in problems(whole="model: s3://bucket/m\ndatasets: [{path: m}]\n")[0]


def test_text_can_be_split_and_conversations_cannot(read, problems):
    split = "model: m\ntruncation_strategy: split\ndatasets: [{{path: rows.jsonl, type: {}}}]\n"
    assert read(whole=split.format("text"))
    assert "truncation_strategy: split is for text" in problems(whole=split.format("conversation"))[0]


def test_an_auto_dataset_may_name_columns_of_any_chat_type(read):
    assert read(whole="model: m\ndatasets: [{path: rows.jsonl, output_field: a}]\n")


@pytest.mark.parametrize("config", ["{}", '{"quantization_config": {"quant_method": "fp8"}}'])
def test_a_canary_needs_something_to_watch(read, problems, tmp_path, config):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(config)
    lines = "model: ./model\ndatasets: [{path: rows.jsonl}]\nprecision_canary_steps: 5\n"
    if config != "{}":
        assert read(whole=lines)
        return
    assert problems(whole=lines) == [
        "cfg.yaml:3: precision_canary_steps needs something to watch: one of qlora_bnb, qlora_fp8, qlora_fp4, a base "
        "that is quantised, or another recipe than bf16."
    ]


def test_an_empty_list_of_datasets_is_told(problems):
    assert problems(whole="model: m\ndatasets: []\n") == [
        "cfg.yaml:2: datasets is empty. List at least one source of rows."
    ]


def test_a_reporter_that_is_not_installed_is_told(problems, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert problems("report_to: [wandb]\n") == [
        "cfg.yaml:4: report_to: wandb needs the wandb package. Install it with `pip install wandb`."
    ]


def test_nothing_is_said_twice_about_a_key_that_is_wrong_already(problems):
    assert problems("max_length: long\nsequence_len: 4\n") == [
        "cfg.yaml:4: max_length must be a whole number above 0, got 'long'."
    ]
