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
