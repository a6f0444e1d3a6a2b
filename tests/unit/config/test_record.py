from __future__ import annotations

from surogate.config.record import to_yaml

LINES = """\
learning_rate: 1e-5
lora_target_modules: [q_proj, v_proj]
rope_scaling: {rope_type: yarn, factor: 2.0}
system: "two\\nlines # and a hash"
template: 'true'
hub_token: hf_secret
"""


def test_the_record_reads_back_as_the_same_configuration(read):
    first = read(LINES, "--lora_rank", "8")
    again = read(whole=to_yaml(first, "sft"))
    assert {**again.given, "hub_token": "hf_secret"} == first.given


def test_the_record_says_where_each_value_came_from(read):
    lines = to_yaml(read(LINES, "--lora_rank", "8"), "sft").splitlines()
    assert "model: some/model  # cfg.yaml:1" in lines
    assert "lora_target_modules: [q_proj, v_proj]  # cfg.yaml:5" in lines
    assert "lora_rank: 8  # command line" in lines
    assert "datasets:  # cfg.yaml:2" in lines


def test_the_record_holds_no_secret_and_no_default(read):
    text = to_yaml(read(LINES), "sft")
    assert "hf_secret" not in text
    assert "hub_token" not in text
    assert "max_grad_norm" not in text


def test_the_records_of_three_files_read_back_as_the_same_run(read_files):
    files = {
        "train": "loss: {type: dapo, clip_high: 0.3}\nreport_to: [tensorboard]",
        "infer": "vllm: {block_size: 16}",
        "orch": "eval: {env: [{id: math, args: {level: 3}}], interval: 5}\nsampling: {temperature: 0.7}\nfilters: [{}]",
    }
    first = read_files("--orch.env.0.args.digits", "2", "--train.loss.adv_tau", "2", **files)
    parts = {"train": first.train, "infer": first.infer, "orch": first.orch}
    again = read_files(whole={name: to_yaml(part, "grpo") for name, part in parts.items()})
    assert again.train.given == first.train.given
    assert (again.infer.config, again.orch.config) == (first.infer.config, first.orch.config)


def test_the_record_of_a_mapping_holds_no_defaults(read_files):
    orch = read_files(orch="eval: {env: [{id: math}], interval: 5}").orch
    assert "eval: {env: [{id: math}], interval: 5}  # orch.yaml:3" in to_yaml(orch, "grpo").splitlines()
