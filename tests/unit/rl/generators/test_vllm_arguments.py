"""What vLLM is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surogate.config.parts_grpo import InferenceSpec, SamplingSpec
from surogate.errors import GeneratorError
from surogate.rl.generators import vllm_arguments
from surogate.rl.generators.vllm_arguments import (
    CPU_BLOCK_SIZE,
    MAX_DEFAULT_KV_BYTES,
    ModelShape,
    Seeds,
    context_len,
    engine_arguments,
    engine_environment,
    kv_cache_bytes,
    sampling_arguments,
    scoring_arguments,
    token_versions,
    version_name,
)

CONFIG = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}


def model_dir(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "max_position_embeddings": 2048, **changes}))
    return folder


def test_every_argument_exists_in_vllm(tmp_path: Path) -> None:
    from vllm import SamplingParams
    from vllm.engine.arg_utils import EngineArgs

    for has_gpu in (False, True):
        spec = InferenceSpec(tp=2, kv_cache_gib=0.5, max_model_len=128)
        assert engine_arguments(spec, model_dir(tmp_path), has_gpu=has_gpu).keys() <= set(EngineArgs.__annotations__)
    for arguments in (sampling_arguments(SamplingSpec(), ["x"]), scoring_arguments()):
        SamplingParams(**arguments)


def test_a_cpu_engine_is_told_its_memory_block_size_and_dtype(tmp_path: Path) -> None:
    spec = InferenceSpec(max_model_len=512, max_num_seqs=64)
    arguments = engine_arguments(spec, model_dir(tmp_path), has_gpu=False)
    assert arguments["block_size"] == CPU_BLOCK_SIZE
    assert arguments["dtype"] == "float32"
    assert "gpu_memory_utilization" not in arguments
    # 30 layers, keys and values of 3 heads of 64 numbers of 4 bytes
    needed = 30 * 2 * 3 * 64 * 4 * 512 * 64
    assert needed <= arguments["kv_cache_memory_bytes"] < 1.2 * needed


def test_a_gpu_engine_chooses_itself_unless_it_is_told(tmp_path: Path) -> None:
    folder = model_dir(tmp_path)
    arguments = engine_arguments(InferenceSpec(gpu_memory_utilization=0.4), folder, has_gpu=True)
    assert arguments["gpu_memory_utilization"] == 0.4
    assert not {"kv_cache_memory_bytes", "block_size"} & arguments.keys()
    told = engine_arguments(InferenceSpec(kv_cache_gib=0.5, dtype="bfloat16"), folder, has_gpu=True)
    assert told["kv_cache_memory_bytes"] == 2**29
    assert told["dtype"] == "bfloat16"


def test_default_memory_has_a_limit_but_holds_one_sequence() -> None:
    shape = ModelShape(max_positions=None, kv_elements=1024)
    assert kv_cache_bytes(shape, 4096, 1000) == MAX_DEFAULT_KV_BYTES
    assert kv_cache_bytes(shape, 2**21, 1) >= 4 * 1024 * 2**21
    assert kv_cache_bytes(ModelShape(max_positions=None, kv_elements=0), 128, 1) == MAX_DEFAULT_KV_BYTES


def test_the_context_is_the_users_or_the_models_and_the_engine_gets_one_token_more(tmp_path: Path) -> None:
    folder = model_dir(tmp_path)
    shape = ModelShape.read(folder)
    for asked, expected in ((None, 2048), (128, 128), (2048, 2048)):
        spec = InferenceSpec(max_model_len=asked)
        assert context_len(spec, shape) == expected
        assert engine_arguments(spec, folder, has_gpu=False)["max_model_len"] == expected + 1
        is_allowed = "VLLM_ALLOW_LONG_MAX_MODEL_LEN" in engine_environment(spec, shape)
        assert is_allowed == (expected == 2048)
    with pytest.raises(GeneratorError, match="max_model_len is 2049, and the model addresses at most 2048"):
        context_len(InferenceSpec(max_model_len=2049), shape)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GeneratorError, match=r"has no config\.json"):
        ModelShape.read(tmp_path)


def test_shapes_are_read_from_inside_a_composite_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {**CONFIG, "head_dim": 128}}))
    assert ModelShape.read(tmp_path).kv_elements == 2 * 30 * 3 * 128


def test_an_engine_without_adapters_is_not_told_of_any(tmp_path: Path) -> None:
    arguments = engine_arguments(InferenceSpec(enable_lora=False), model_dir(tmp_path), has_gpu=False)
    assert not any("lora" in key for key in arguments)


def test_the_users_own_arguments_win(tmp_path: Path) -> None:
    spec = InferenceSpec(vllm={"block_size": 16, "swap_space": 1})
    arguments = engine_arguments(spec, model_dir(tmp_path), has_gpu=False)
    assert arguments["block_size"] == 16
    assert arguments["swap_space"] == 1


def test_nothing_of_the_distribution_is_left_to_the_models_generation_config() -> None:
    arguments = sampling_arguments(SamplingSpec(temperature=0.7), ())
    assert arguments["top_p"] == 1.0
    assert arguments["top_k"] == 0
    assert arguments["min_p"] == 0.0
    assert arguments["repetition_penalty"] == 1.0


def test_temperature_0_is_the_single_most_likely_token() -> None:
    arguments = sampling_arguments(SamplingSpec(temperature=0.0), ())
    assert (arguments["temperature"], arguments["top_k"]) == (1.0, 1)


def test_seeds_depend_on_the_seed_alone() -> None:
    seeds = Seeds(3)
    assert seeds.draw(4, 11) == Seeds(5).draw(4, 11)
    assert seeds.draw(4, 11) != seeds.draw(4, 12)
    assert len(set(seeds.draw(4, None) + seeds.draw(4, None))) == 8
    assert Seeds(3).draw(4, None) != Seeds(4).draw(4, None)


@pytest.mark.parametrize(("has_adapter", "expected"), [(True, [0, 0, 7, 7, 7]), (False, [0, 0, 2, 2, 2])])
def test_versions_are_those_of_the_base_or_of_the_adapter(has_adapter: bool, expected: list[int]) -> None:
    spans = [
        {"version": version_name(0, 0), "start": 0, "end": 2},
        {"version": version_name(2, 7), "start": 2, "end": 5},
    ]
    assert token_versions(spans, 5, has_adapter=has_adapter) == expected


@pytest.mark.parametrize("spans", [None, [{"version": "default", "start": 0, "end": 5}], []])
def test_tokens_without_a_version_are_an_error(spans: Any) -> None:
    with pytest.raises(GeneratorError, match="weight version of 0 of 5 tokens"):
        token_versions(spans, 5, has_adapter=False)


def test_arguments_name_the_worker_extension_that_exists() -> None:
    from importlib import import_module

    module, _, name = vllm_arguments.WORKER_EXTENSION.rpartition(".")
    assert hasattr(import_module(module), name)
