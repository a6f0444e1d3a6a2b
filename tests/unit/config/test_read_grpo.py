"""Three files read as one configuration."""

from __future__ import annotations

import pytest

from surogate.config.parts_grpo import EnvSpec, FilterSpec
from surogate.config.read import read_config
from surogate.config.read_grpo import read_grpo
from surogate.errors import ConfigError


def test_minimal_files_take_every_default(read_files):
    resolved = read_files()
    assert (resolved.train.config.lora, resolved.train.config.gradient_accumulation_steps) == (True, 1)
    assert resolved.train.config.loss.type == "aipo"
    assert (resolved.orch.config.batch_size, resolved.orch.config.rollouts_per_example) == (128, 16)
    assert resolved.orch.config.env == [EnvSpec(id="arithmetic")]


def test_a_key_inside_a_mapping_is_typed_and_keeps_the_defaults_of_its_neighbours(read_files):
    resolved = read_files(train="loss: {type: dapo, clip_high: 3e-1}", orch="sampling: {temperature: 0.7}")
    assert (resolved.train.config.loss.type, resolved.train.config.loss.clip_high) == ("dapo", 0.3)
    assert resolved.train.config.loss.adv_tau == 1.0
    assert (resolved.orch.config.sampling.temperature, resolved.orch.config.sampling.max_tokens) == (0.7, 512)


def test_values_inside_mappings_are_plain_python_numbers(read_files):
    sampling = read_files(orch="sampling: {max_tokens: 4, temperature: 1}").orch.config.sampling
    assert (type(sampling.max_tokens), type(sampling.temperature)) == (int, float)


def test_lists_of_mappings_are_read_at_any_depth(read_files):
    orch = "filters: [{type: gibberish, span: 8}, {enforce: true}]\neval:\n  env: [{id: math}, {id: code}]"
    config = read_files(orch=orch).orch.config
    assert config.filters == [FilterSpec(type="gibberish", span=8), FilterSpec(enforce=True)]
    assert [spec.id for spec in config.eval.env] == ["math", "code"]


def test_one_mapping_where_a_list_is_expected_becomes_a_list_at_any_depth(read_files):
    config = read_files("--orch.eval.env.1.id", "code", orch="filters: {enforce: true}\neval: {env: {id: math}}")
    assert config.orch.config.filters == [FilterSpec(enforce=True)]
    assert [spec.id for spec in config.orch.config.eval.env] == ["math", "code"]


def test_arguments_of_environments_and_of_vllm_pass_through(read_files):
    infer = "vllm: {ignore_patterns: [1, b]}"
    resolved = read_files("--orch.env.0.args.digits", "2", "--infer.vllm.block_size", "32", infer=infer)
    assert resolved.orch.config.env[0].args == {"digits": 2}
    assert resolved.infer.config.vllm == {"ignore_patterns": [1, "b"], "block_size": 32}


def test_overrides_name_their_file_and_win_over_it(read_files):
    resolved = read_files(
        "--train.learning_rate", "1e-4", "--orch.batch_size=64", "--infer.port", "8001", "--train.loss.type", "gspo",
        "--orch.sampling", "{max_tokens: 7}", train="learning_rate: 1.0", orch="batch_size: 32",
    )  # fmt: skip
    assert (resolved.train.config.learning_rate, resolved.train.config.loss.type) == (1e-4, "gspo")
    assert (resolved.orch.config.batch_size, resolved.orch.config.sampling.max_tokens) == (64, 7)
    assert resolved.infer.config.port == 8001


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ("--learning_rate", "1"),
            "--learning_rate does not say which file it changes. Write --train.learning_rate.",
        ),
        (
            ("--max_async_level", "1"),
            "--max_async_level does not say which file it changes. Write --train.max_async_level or "
            "--orch.max_async_level.",
        ),
        (
            ("--foo", "1"),
            "--foo does not say which file it changes. None has such a key; `surogate grpo --help` lists all.",
        ),
        (
            ("--learning-rat", "1"),
            "--learning-rat does not say which file it changes. Write --train.learning_rate.",
        ),
        (
            ("--orchestrator.sampling.max_tokens", "1"),
            "--orchestrator.sampling.max_tokens does not say which file it changes. Write --orch.sampling.max_tokens.",
        ),
        (("--train", "x.yaml"), "--train does not say which file it changes."),
        (
            ("--train.lora",),
            "--train.lora has no value. Write --train.lora value, for example --train.lora true.",
        ),
        (("stray",), "'stray' stands alone. Overrides are written --key value."),
        (("--orch.env.7.id", "x"), "--orch.env.7 does not exist. List items are counted from 0"),
    ],
)
def test_an_override_that_leads_nowhere_is_told(problems_of, overrides, sentence):
    assert problems_of(*overrides)[0].startswith(f"command line: {sentence}")


def test_each_value_knows_where_it_came_from(read_files):
    resolved = read_files("--orch.batch_size", "64", train="loss: {type: dapo}")
    assert resolved.train.origins == {"model": "train.yaml:1", "loss": "train.yaml:2"}
    assert resolved.orch.origins["batch_size"] == "command line (orch.yaml)"


def test_all_problems_of_all_files_come_together_in_their_order(problems_of):
    found = problems_of(
        "--orch.batch_size", "many", "--seed", "1",
        train="loss:\n  tpe: dapo\n  ratio_clip: -1",
        infer="prot: 1",
        orch="filters:\n  - {type: dull}\nrollouts_per_example: 1",
    )  # fmt: skip
    assert found == [
        "train.yaml:3: loss.tpe is not a key. Did you mean loss.type?",
        "train.yaml:4: loss.ratio_clip must be a number above 0, got -1.",
        "infer.yaml:2: prot is not a key. Did you mean port?",
        "orch.yaml:4: filters[0].type must be repetition or gibberish, got 'dull'.",
        "orch.yaml:5: rollouts_per_example must be 2 or more: an advantage compares the rollouts of a prompt with each "
        "other, and of a single one it is always 0.",
        "command line (orch.yaml): batch_size must be a whole number above 0, got 'many'.",
        "command line: --seed does not say which file it changes. Write --infer.seed or --orch.seed.",
    ]


def test_files_that_cannot_be_read_are_told_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "infer.yaml").write_text("- a\n")
    with pytest.raises(ConfigError) as caught:
        read_grpo("train.yaml", "infer.yaml", "orch.yaml")
    assert str(caught.value).splitlines() == [
        "3 problems",
        "train.yaml cannot be read: No such file or directory.",
        "infer.yaml must hold `key: value` lines.",
        "orch.yaml cannot be read: No such file or directory.",
    ]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"train": "los: {type: dapo}"}, "train.yaml:2: los is not a key. Did you mean loss?"),
        ({"train": "loss: dapo"}, "train.yaml:2: loss must be a mapping, such as {type: aipo}."),
        ({"train": "loss:"}, "train.yaml:2: loss has no value. Remove the line to use the default."),
        ({"train": "loss: {type: ppo}"}, "train.yaml:2: loss.type must be aipo, grpo, dr_grpo, dapo, gspo or cispo"),
        ({"train": "loss: {adv_tau: }"}, "train.yaml:2: loss.adv_tau has no value. Remove the line to use the default"),
        ({"train": "loss: {type: grpo, type: dapo}"}, "train.yaml:2: loss.type is set twice. Keep one of the lines."),
        ({"train": "loss: {teacher_tau: 0.1}"}, "train.yaml:2: loss.teacher_tau is refused: teacher models are"),
        ({"train": "transport_type: zmq"}, "transport_type: zmq is refused: rollouts over ZeroMQ are planned"),
        ({"train": "weight_broadcast_type: nccl"}, "weight_broadcast_type: nccl is refused: weights over NCCL are"),
        ({"train": "weight_broadcast_type: smoke"}, "weight_broadcast_type must be filesystem, got 'smoke'."),
        ({"train": "max_async_level: -1"}, "max_async_level must be a whole number of 0 or more or auto, got -1."),
        ({"train": "num_epochs: 3"}, "num_epochs is refused: environments are not passed over in epochs."),
        ({"train": "eval_steps: 3"}, "eval_steps is refused: evaluation is a matter of orch.yaml. Set eval.env and"),
        ({"train": "datasets: [{path: a}]"}, "datasets is refused: prompts come from environments, not from data sets"),
        ({"train": "sample_packing: false"}, "sample_packing is refused: rollouts are always packed. Remove it."),
        ({"train": "early_stop: true"}, "early_stop is refused: a policy's loss says nothing of when to stop"),
        ({"train": "normuon_momentum: 0.9"}, "normuon_momentum needs optimizer: normuon"),
        ({"train": "epochs: 3"}, "train.yaml:2: epochs is not a key here. Use max_steps."),
        ({"train": "batch_size: 3"}, "train.yaml:2: batch_size is not a key here. It belongs in orch.yaml."),
        ({"train": "gpu_memory_utilization: 0.5"}, "is not a key here. It belongs in infer.yaml."),
        ({"infer": "tensor_parallel_size: 2"}, "infer.yaml:2: tensor_parallel_size is not a key here. Use tp."),
        ({"infer": "quantization: fp8"}, "infer.yaml:2: quantization is not a key. Arguments of vLLM itself"),
        ({"infer": "port: 70000"}, "infer.yaml:2: port must be a whole number from 1 to 65535, got 70000."),
        ({"infer": "gpu_memory_utilization: 1.5"}, "must be a number above 0, at most 1, got 1.5"),
        ({"orch": "teacher_model: {name: big}"}, "orch.yaml:3: teacher_model is refused: teacher models are planned"),
        ({"orch": "ruler: {model: big}"}, "orch.yaml:3: ruler is refused: rewards by a judging model are planned"),
        ({"orch": "ruler.enabled: true"}, "orch.yaml:3: ruler.enabled is refused: rewards by a judging model"),
        ({"orch": "sequence_len: 512"}, "orch.yaml:3: sequence_len is not a key here. Use seq_len."),
        ({"orch": "temperature: 1.0"}, "orch.yaml:3: temperature is not a key here. Use sampling.temperature."),
        ({"orch": "learning_rate: 1.0"}, "orch.yaml:3: learning_rate is not a key here. It belongs in train.yaml."),
        ({"orch": "eval:\n  env:\n    - idd: math"}, "orch.yaml:5: eval.env[0].idd is not a key. Did you mean eval"),
        ({"orch": "oversampling_factor: 0.5"}, "oversampling_factor must be a number of 1 or more, got 0.5."),
        ({"orch": "eval: {env: [math]}"}, "orch.yaml:3: eval.env[0] must be a mapping, such as {id: math}."),
        ({"orch": "filters: 3"}, "orch.yaml:3: filters must be a list of mappings, got 3."),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_is_told_at_its_line(problems_of, files, sentence):
    assert sentence in problems_of(**files)[0]


@pytest.mark.parametrize(
    "lines",
    ["loss: {teacher_tau: 0.0}", "loss: {}", "sample_packing: true", "datasets: []", "early_stop: false", "lora: true"],
)
def test_what_asks_for_nothing_is_accepted(read_files, lines):
    assert read_files(train=lines)


def test_an_orch_file_without_environments_lacks_what_is_required(problems_of):
    assert problems_of(whole={"orch": "max_steps: 1\n"}) == [
        "orch.yaml: env is missing. Environments to learn in; see the keys of an environment."
    ]


def test_a_base_url_may_be_one_address_or_several(read_files):
    one = read_files(orch="client: {base_url: http://a:1}").orch.config.client.base_url
    two = read_files(orch="client: {base_url: [http://a:1, http://b:1]}").orch.config.client.base_url
    assert (one, two) == (["http://a:1"], ["http://a:1", "http://b:1"])


@pytest.mark.parametrize(
    ("mode", "text", "missing"),
    [
        ("grpo-train", "model: m\n", ["max_steps is missing. Set it"]),
        ("grpo-infer", "port: 1\n", ["model is missing. Name the one that train.yaml names."]),
        (
            "grpo-orch",
            "env: {id: arithmetic}\n",
            ["model.name is missing", "seq_len is missing", "max_steps is missing", "output_dir is missing"],
        ),
    ],
)
def test_a_file_by_itself_must_say_what_the_others_would(tmp_path, mode, text, missing):
    (tmp_path / "cfg.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(mode, tmp_path / "cfg.yaml")
    first, *rest = str(caught.value).splitlines()
    for line, sentence in zip(rest or [first], missing, strict=True):
        assert sentence in line


@pytest.mark.parametrize(
    ("mode", "text", "overrides"),
    [
        ("grpo-train", "model: m\nmax_steps: 3\n", ["--loss.type", "cispo"]),
        ("grpo-infer", "model: m\n", ["--vllm.block_size", "32"]),
        (
            "grpo-orch",
            "env: {id: math}\nmodel: {name: m}\nseq_len: 600\nmax_steps: 1\noutput_dir: o\n",
            ["--seed", "1"],
        ),
    ],
)
def test_a_whole_file_is_read_by_itself(tmp_path, mode, text, overrides):
    (tmp_path / "cfg.yaml").write_text(text)
    assert read_config(mode, tmp_path / "cfg.yaml", overrides).config.verb in (mode, "grpo")
