"""The verb writes models in few bits that transformers loads with the values that we read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from support.quantised import BNB, SHAPE, of_bitsandbytes, save_quantised
from support.tiny import save_tiny_model
from support.word_tokenizer import save_word_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig

from surogate.cli.quantize import main
from surogate.config.parts import ModelSpec
from surogate.errors import ConfigError, ModelError
from surogate.models.load import load_model
from surogate.quant.checkpoints.writing import ShardWriter
from surogate.quant.nf4 import Nf4Format

AS_STORED = torch.device("meta")


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_base(tmp_path / "base", tie_word_embeddings=request.param)


def make_base(folder: Path, **changes: Any) -> Path:
    """A bfloat16 model with its tokenizer."""
    plain = save_quantised(folder, lambda weight: {".weight": weight}, None, **changes)
    return save_word_tokenizer(plain, ["river"])


def quantise(base: Path, format_: str, *options: str) -> Path:
    folder = base.with_name(format_)
    assert main([str(base), "--format", format_, "--output", str(folder), *options]) == 0
    return folder


def ours(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(ModelSpec(source=str(folder)), AS_STORED).state_dict()


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() <= expected.keys()
    for name, tensor in got.items():
        assert expected[name].dtype == tensor.dtype and torch.equal(expected[name], tensor), name


def assert_whole(folder: Path, base: Path, *, tied: bool) -> None:
    """Everything else of a model folder is there, and the head and the embeddings are the base's."""
    assert not list(folder.parent.glob("*.tmp")) and AutoTokenizer.from_pretrained(folder).get_vocab()
    config = json.loads((folder / "config.json").read_text())
    assert config["use_cache"] and config["dtype"] == "bfloat16" and config["architectures"] == ["LlamaForCausalLM"]
    generation = "generation_config.json"
    assert (folder / generation).read_text() == (base / generation).read_text()
    written, original = load_file(folder / "model.safetensors"), load_file(base / "model.safetensors")
    assert ("lm_head.weight" in written) != tied
    for name, tensor in original.items():
        assert "_proj" in name or torch.equal(written[name], tensor), name


def is_tied(base: Path) -> bool:
    return json.loads((base / "config.json").read_text())["tie_word_embeddings"]


@pytest.mark.parametrize("options", [[], ["--no-double-quant", "--block-size", "128"]], ids=" ".join)
def test_nf4_is_loaded_by_bitsandbytes_with_equal_values(base: Path, options: list[str], capsys: Any) -> None:
    folder = quantise(base, "nf4", *options)
    said = capsys.readouterr().out
    assert "14 linear layers in nf4" in said and "bits a weight over the whole model" in said
    assert_whole(folder, base, tied=is_tied(base))
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    expected = {}
    for name, tensor in theirs.state_dict().items():
        layer = theirs.get_submodule(name.rpartition(".")[0]) if name.endswith("_proj.weight") else None
        expected[name] = tensor if layer is None else bnb.dequantize_4bit(tensor, layer.weight.quant_state)
    got = ours(folder)
    assert_same(got, expected)
    weight = load_file(base / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    storage = Nf4Format(block_size=128, double_quant=False) if options else Nf4Format()
    assert torch.equal(got["model.layers.0.mlp.up_proj.weight"], storage.quantize(weight).dequantize(torch.bfloat16))
    ids = torch.arange(10)[None]
    logits = load_model(ModelSpec(source=str(folder), dtype="float32"))(ids).logits
    assert (theirs(ids).logits.float() - logits).norm() < 5e-2 * logits.norm()  # theirs computes in bfloat16


@pytest.mark.parametrize("options", [[], ["--block-size", "64"]], ids=" ".join)
def test_fp8_is_loaded_by_transformers_with_equal_values(base: Path, options: list[str]) -> None:
    folder = quantise(base, "fp8", *options)
    assert_whole(folder, base, tied=is_tied(base))
    assert_same(ours(folder), AutoModelForCausalLM.from_pretrained(folder).state_dict())


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("options", [[], ["--no-four-over-six"]], ids=" ".join)
def test_nvfp4_is_loaded_by_compressed_tensors_with_equal_values(base: Path, options: list[str]) -> None:
    folder = quantise(base, "nvfp4", *options)
    assert_whole(folder, base, tied=is_tied(base))
    theirs = AutoModelForCausalLM.from_pretrained(folder, quantization_config=CompressedTensorsConfig(dequantize=True))
    assert_same(ours(folder), theirs.state_dict())
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig.model_validate(config).config_groups["group_0"]
    tensors = load_file(folder / "model.safetensors")
    layer = "model.layers.1.mlp.down_proj."
    state = {name.removeprefix(layer): tensor for name, tensor in tensors.items() if name.startswith(layer)}
    assert set(state) == set(NVFP4PackedCompressor.compression_param_names(scheme))


def test_layers_that_vllm_joins_share_their_tensor_scale(tmp_path: Path) -> None:
    folder = quantise(make_base(tmp_path / "base"), "nvfp4")
    tensors = load_file(folder / "model.safetensors")
    for layer in ("self_attn.{}_proj", "mlp.{}_proj"):
        joined = ("q", "k", "v") if "attn" in layer else ("gate", "up")
        scales = {float(tensors[f"model.layers.0.{layer.format(n)}.weight_global_scale"]) for n in joined}
        assert len(scales) == 1
    assert float(tensors["model.layers.0.mlp.down_proj.weight_global_scale"]) not in scales


def test_layers_that_transformers_would_read_wrong_stay_and_those_that_are_served_as_one_with_them(
    tmp_path: Path, capsys: Any
) -> None:
    base = make_base(tmp_path / "base", num_key_value_heads=2, intermediate_size=192)
    folder = quantise(base, "fp8")
    kept = json.loads((folder / "config.json").read_text())["quantization_config"]["modules_to_not_convert"]
    names = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}
    assert {name.rpartition(".")[2] for name in kept} == names and len(kept) == 13
    said = capsys.readouterr().out
    assert "2 linear layers in fp8" in said and "served as one with model.layers.0.self_attn.k_proj" in said
    assert_same(ours(folder), AutoModelForCausalLM.from_pretrained(folder).state_dict())


def test_skipped_decoder_layers_stay(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", num_hidden_layers=3)
    for format_ in ("nf4", "fp8", "nvfp4"):
        folder = quantise(base, format_, "--skip-first-layers", "1", "--skip-last-layers", "1")
        got, original = ours(folder), ours(base)
        changed = {name for name, tensor in original.items() if not torch.equal(got[name], tensor)}
        assert changed and all(name.startswith("model.layers.1.") for name in changed)
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_model_of_which_nothing_can_be_written_is_refused_with_the_reason(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", hidden_size=96)
    with pytest.raises(ModelError, match=r"No linear layer of .* can be written in fp8, tiles of 128 x 128: .*96 is"):
        quantise(base, "fp8")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_many_tensors_go_to_several_files_with_an_index(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, max_bytes=100)
    tensors = {f"t{i}": torch.full((10,), float(i)) for i in range(5)}
    writer.add(tensors)
    writer.add({"large": torch.zeros(50)})
    writer.close()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 400}
    assert sorted(set(index["weight_map"].values())) == [f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    for name, tensor in tensors.items():
        assert torch.equal(load_file(tmp_path / index["weight_map"][name])[name], tensor)
    assert {path.name for path in tmp_path.iterdir()} == {*index["weight_map"].values(), "model.safetensors.index.json"}


def test_a_folder_that_is_taken_is_refused_unless_forced(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    taken = base.with_name("nf4")
    taken.mkdir()
    (taken / "thesis.txt").touch()
    with pytest.raises(ModelError, match="--force"):
        quantise(base, "nf4")
    assert (taken / "thesis.txt").exists()
    quantise(base, "nf4", "--force")
    assert not (taken / "thesis.txt").exists() and (taken / "config.json").exists()
    for place in (base, tmp_path):
        with pytest.raises(ModelError, match="which is read here"):
            main([str(base), "--format", "nf4", "--output", str(place), "--force"])


def test_a_model_that_is_quantised_already_is_refused(tmp_path: Path) -> None:
    base = save_word_tokenizer(save_quantised(tmp_path / "base", of_bitsandbytes(), BNB), ["river"])
    with pytest.raises(ModelError, match=r"is quantised already \(bitsandbytes\)"):
        quantise(base, "fp8")


def test_a_broken_weight_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    base = save_word_tokenizer(save_tiny_model(tmp_path / "base", **SHAPE), ["river"])
    model = AutoModelForCausalLM.from_pretrained(base)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    model.save_pretrained(base)
    with pytest.raises(ModelError, match=r"model.layers.1.mlp.up_proj.weight holds NaN or infinity"):
        quantise(base, "nvfp4")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["nf4", "--block-size", "100"], "it is 64, 128, 256, 512 with --format nf4"),
        (["fp8", "--block-size", "512"], "it is 64, 128, 256 with --format fp8"),
        (["nvfp4", "--block-size", "32"], "fixed in nvfp4, at 16"),
        (["fp8", "--no-double-quant"], "--no-double-quant needs --format nf4, not fp8"),
        (["nf4", "--no-four-over-six"], "--no-four-over-six needs --format nvfp4, not nf4"),
        (["nf4", "--skip-first-layers", "-1"], "--skip-first-layers must be 0 or more"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_mean_nothing_together_are_refused(options: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        main(["model", "--format", *options, "--output", str(tmp_path / "out")])


def test_help_answers_without_torch_and_shows_an_example() -> None:
    code = (
        "import sys\nfrom surogate.cli.quantize import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "surogate quantize Qwen/Qwen3-0.6B --format nf4" in done.stdout
