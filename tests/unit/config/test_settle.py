"""What one of the three files leaves out is taken from another."""

from __future__ import annotations

import json

import pytest

from surogate.config.read import read_config


def test_the_model_and_the_lengths_are_the_trainers(read_files):
    resolved = read_files(train="sequence_len: 600\nmodel_dtype: bf16\ntrust_remote_code: true")
    infer, orch = resolved.infer.config, resolved.orch.config
    assert (infer.model, orch.model.name) == ("some/model", "some/model")
    assert (orch.seq_len, infer.max_model_len) == (600, 600)
    assert (infer.dtype, infer.trust_remote_code) == ("bfloat16", True)


def test_the_engine_holds_as_much_as_a_rollout_may_have(read_files):
    assert read_files(orch="seq_len: 700").infer.config.max_model_len == 700
    assert read_files(infer="max_model_len: 4096", orch="seq_len: 700").infer.config.max_model_len == 4096


def test_what_only_the_orchestrators_file_says_holds_for_the_run(read_files):
    orch = "output_dir: o\nseed: 5\nmax_async_level: 2\nckpt: {interval: 3, keep_last: 2}\nreport_to: [tensorboard]"
    train = read_files(orch=orch).train.config
    assert (train.max_steps, train.output_dir, train.train_seed, train.max_async_level) == (9, "o", 5, 2)
    assert (train.save_steps, train.save_total_limit, train.report_to) == (3, 2, ["tensorboard"])


def test_what_only_the_trainers_file_says_holds_for_the_run(read_files):
    lines = "output_dir: o\ntrain_seed: 5\nmax_async_level: 2\nmax_steps: 7\nreport_to: [tensorboard]"
    orch = read_files(train=lines, whole={"orch": "env: {id: math}\n"}).orch.config
    assert (orch.max_steps, orch.output_dir, orch.seed, orch.max_async_level) == (7, "o", 5, 2)
    assert (orch.sampling.seed, orch.report_to) == (5, ["tensorboard"])


def test_the_tokenizer_and_the_trust_of_one_file_hold_for_all(read_files):
    resolved = read_files(orch="model: {tokenizer: org/a, trust_remote_code: true}")
    assert resolved.train.config.tokenizer == "org/a" and resolved.infer.config.trust_remote_code
    resolved = read_files(train="tokenizer: org/a\ntrust_remote_code: true")
    assert (resolved.orch.config.model.tokenizer, resolved.orch.config.model.trust_remote_code) == ("org/a", True)


def test_sampling_may_have_a_seed_of_its_own(read_files):
    orch = read_files(orch="seed: 5\nsampling: {seed: 6}").orch.config
    assert (orch.seed, orch.sampling.seed) == (5, 6)


def test_the_orchestrators_file_by_itself_has_the_seeds_that_the_trainer_would_give(tmp_path):
    lines = "env: {id: math}\nmodel: {name: m}\nseq_len: 600\nmax_steps: 1\noutput_dir: o\n"
    (tmp_path / "orch.yaml").write_text(lines)
    orch = read_config("grpo-orch", tmp_path / "orch.yaml").config
    assert (orch.seed, orch.sampling.seed) == (1234, 1234)


def test_what_the_user_set_stays_apart_from_what_was_filled_in(read_files):
    resolved = read_files(orch="output_dir: o")
    assert (resolved.train.given, resolved.infer.given) == ({"model": "some/model"}, {"max_loras": 2})


@pytest.mark.parametrize(
    ("lines", "rank"),
    [
        ("lora_rank: 1", 1),
        ("lora_rank: 2", 8),
        ("lora_rank: 16", 16),
        ("lora_rank: 300", 320),
        ("lora_rank: 16\ninit_lora_weights: pissa", 32),
        ("lora_rank: 16\ninit_lora_weights: olora", 32),
        ("lora_rank: 16\ninit_lora_weights: gaussian", 16),
        ("lora_rank: 513", None),
    ],
)
def test_the_engine_serves_the_smallest_rank_that_holds_the_adapter(read_files, lines, rank):
    assert read_files(train=lines).infer.config.max_lora_rank == rank


def test_an_adapter_that_goes_on_training_has_the_rank_of_its_folder(read_files, tmp_path):
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / "adapter" / "adapter_config.json").write_text(json.dumps({"r": 64}))
    lines = "adapter_path: ./run\nadapter_init_mode: trainable"
    assert read_files(train=lines).infer.config.max_lora_rank == 64


@pytest.mark.parametrize(
    ("train", "infer", "sync"),
    [
        ("", "", "auto"),
        ("qlora_bnb: true", "", "auto"),
        ("use_dora: true", "", "full"),
        ("modules_to_save: [lm_head]", "", "full"),
        ("adapter_path: a/b", "", "auto"),
        ("adapter_path: a/b\nadapter_init_mode: trainable", "", "auto"),
        ("lora_rank: 513", "", "full"),
        ("", "enable_lora: false", "full"),
        ("weight_sync: full", "", "full"),
        ("weight_sync: adapter", "", "adapter"),
    ],
)
def test_merged_weights_are_sent_where_the_adapter_cannot_be_served(read_files, train, infer, sync):
    assert read_files(train=train, infer=infer).train.config.weight_sync == sync


def test_merged_weights_are_sent_to_servers_whose_base_the_adapter_does_not_fit(read_files):
    resolved = read_files(train="adapter_path: a/b", orch="client: {base_url: http://there:8000}")
    assert resolved.train.config.weight_sync == "full"
