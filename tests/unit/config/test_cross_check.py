"""What the three files contradict each other in."""

from __future__ import annotations

import json

import pytest

CASES = [
    (
        {"infer": "model: other/model"},
        "infer.yaml:2: model is other/model in infer.yaml and some/model in train.yaml. All parts work on one model",
    ),
    (
        {"orch": "model: {name: other/model}"},
        "orch.yaml:3: model.name is other/model in orch.yaml and some/model in train.yaml.",
    ),
    (
        {"train": "max_steps: 8"},
        "orch.yaml:2: max_steps is 9 in orch.yaml, and max_steps is 8 in train.yaml. They are the same thing",
    ),
    ({"train": "output_dir: a", "orch": "output_dir: b"}, "orch.yaml:3: output_dir is b in orch.yaml, and output_dir"),
    ({"train": "train_seed: 1", "orch": "seed: 2"}, "orch.yaml:3: seed is 2 in orch.yaml, and train_seed is 1 in"),
    (
        {"train": "max_async_level: 0", "orch": "max_async_level: 1"},
        "orch.yaml:3: max_async_level is 1 in orch.yaml, and max_async_level is 0 in train.yaml.",
    ),
    (
        {"train": "max_async_level: 0", "orch": "max_async_level: auto"},
        "orch.yaml:3: max_async_level is auto in orch.yaml, and max_async_level is 0 in train.yaml.",
    ),
    (
        {"train": "save_steps: 5", "orch": "ckpt: {interval: 10}"},
        "orch.yaml:3: ckpt.interval is 10 in orch.yaml, and save_steps is 5 in train.yaml.",
    ),
    (
        {"train": "save_total_limit: 5", "orch": "ckpt: {keep_last: 1}"},
        "orch.yaml:3: ckpt.keep_last is 1 in orch.yaml, and save_total_limit is 5 in train.yaml.",
    ),
    (
        {"train": "report_to: [wandb]", "orch": "report_to: [tensorboard]"},
        "orch.yaml:3: report_to is [tensorboard] in orch.yaml, and report_to is [wandb] in train.yaml.",
    ),
    ({"orch": "seq_len: 2048"}, "orch.yaml:3: seq_len 2048 in orch.yaml is more than sequence_len 1024 in train.yaml"),
    (
        {"infer": "max_model_len: 512"},
        "infer.yaml:2: max_model_len 512 in infer.yaml is less than the 1024 tokens of a rollout (seq_len in",
    ),
    (
        {"train": "sequence_len: 512"},
        "train.yaml:2: sampling.max_tokens 512 leaves no room for a prompt in a rollout of 512 tokens.",
    ),
    ({"orch": "sampling: {max_tokens: 1024}"}, "orch.yaml:3: sampling.max_tokens 1024 leaves no room for a prompt"),
    (
        {"orch": "eval: {env: {id: math}, max_tokens: 1024}"},
        "orch.yaml:3: eval.max_tokens 1024 leaves no room for a prompt",
    ),
    (
        {"train": "lora_rank: 24", "infer": "max_lora_rank: 16"},
        "infer.yaml:2: lora_rank 24 of train.yaml is more than max_lora_rank 16 of infer.yaml. Set max_lora_rank to",
    ),
    (
        {"train": "init_lora_weights: pissa", "infer": "max_lora_rank: 16"},
        "infer.yaml:2: the adapter's rank 32 of train.yaml is more than max_lora_rank 16 of infer.yaml.",
    ),
    (
        {"train": "weight_sync: adapter\nlora_rank: 600"},
        "train.yaml:3: weight_sync: adapter cannot work, because vLLM serves ranks up to 512. Use weight_sync: full.",
    ),
    (
        {"train": "weight_sync: full\nqlora_bnb: true"},
        "train.yaml:2: weight_sync: full is refused with a quantised base: merged weights have no place in few bits.",
    ),
    (
        {"train": "weight_sync: adapter\nuse_dora: true"},
        "train.yaml:3: weight_sync: adapter cannot work, because vLLM cannot serve DoRA adapters. Use weight_sync:",
    ),
    (
        {"train": "weight_sync: adapter\nmodules_to_save: [lm_head]"},
        "train.yaml:3: weight_sync: adapter cannot work, because vLLM cannot serve modules that are trained whole.",
    ),
    (
        {"train": "weight_sync: adapter\nadapter_path: a/b", "orch": "client: {base_url: http://there:8000}"},
        "train.yaml:3: weight_sync: adapter cannot work, because the adapter fits a base with adapter_path merged in",
    ),
    (
        {"train": "weight_sync: adapter", "infer": "enable_lora: false"},
        "infer.yaml:2: weight_sync: adapter cannot work, because the engine is told to serve no adapters.",
    ),
    (
        {"train": "use_dora: true\nqlora_fp4: true"},
        "train.yaml:2: Neither the adapter nor merged weights could go to the generator: vLLM cannot serve DoRA "
        "adapters, and nothing can be merged into a base that qlora_fp4 stores in few bits. Change use_dora",
    ),
    (
        {"train": "qlora_bnb: true", "infer": "enable_lora: false"},
        "infer.yaml:2: Neither the adapter nor merged weights could go to the generator: the engine is told to serve",
    ),
    (
        {"train": "max_async_level: 9"},
        "train.yaml:2: max_off_policy_steps 8 in orch.yaml is less than max_async_level 9 in train.yaml",
    ),
    (
        {"train": "tokenizer: org/a", "orch": "model: {tokenizer: org/b}"},
        "orch.yaml:3: model.tokenizer is org/b in orch.yaml, and tokenizer is org/a in train.yaml.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("files", "sentence"), CASES)
def test_a_disagreement_is_told_at_the_first_key_that_was_typed(problems_of, files, sentence):
    matching = [problem for problem in problems_of(**files) if problem.startswith(sentence)]
    assert len(matching) == 1


def test_a_run_without_an_end_is_refused(problems_of):
    assert problems_of(whole={"orch": "env: {id: math}\n"}) == [
        "orch.yaml: max_steps is missing. Set it here or in train.yaml: rollouts are made without end, so the run must "
        "know when to stop."
    ]


@pytest.mark.parametrize(
    "files",
    [
        {"infer": "model: some/model", "orch": "model: {name: some/model}"},
        {"train": "max_steps: 9\noutput_dir: a\ntrain_seed: 3", "orch": "output_dir: a\nseed: 3"},
        {"train": "max_steps: -1\nmax_async_level: 1", "orch": "max_async_level: 1"},
        {"train": "save_steps: 5", "orch": "ckpt: {interval: 5, keep_last: 2}"},
        {"train": "report_to: []", "orch": "report_to: [tensorboard]"},
        {"train": "sequence_len: 2048", "orch": "seq_len: 600", "infer": "max_model_len: 600"},
        {"train": "lora_rank: 24", "infer": "max_lora_rank: 32"},
        {"train": "lora_rank: 600\nweight_sync: full"},
        {"train": "lora_rank: 24\nweight_sync: full", "infer": "max_lora_rank: 8"},
        {"train": "lora_rank: 600"},
        {"train": "use_dora: true", "infer": "enable_lora: false"},
        {"train": "weight_sync: adapter\nqlora_bnb: true"},
    ],
)  # fmt: skip
def test_files_that_agree_are_accepted(read_files, files):
    assert read_files(**files)


def test_a_base_that_is_stored_in_few_bits_already_is_found_in_its_folder(problems_of, tmp_path):
    (tmp_path / "stored").mkdir()
    (tmp_path / "stored" / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    found = problems_of(whole={"train": "model: ./stored\nweight_sync: full\n"})
    assert found[0].startswith("train.yaml:2: weight_sync: full is refused with a quantised base")


def test_the_rank_of_an_adapter_that_goes_on_training_is_read_from_its_folder(problems_of, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"r": 64}))
    train = "adapter_path: ./adapter\nadapter_init_mode: trainable"
    found = problems_of(train=train, infer="max_lora_rank: 16")
    assert found[0].startswith("infer.yaml:2: the adapter's rank 64 of train.yaml is more than max_lora_rank 16")


def test_nothing_is_said_of_a_key_that_is_wrong_already(problems_of):
    assert problems_of(train="sequence_len: many", orch="seq_len: 2048") == [
        "train.yaml:2: sequence_len must be a whole number above 0, got 'many'."
    ]
