"""Finding that a checkpoint is quantised, wherever it lies, and what is left of that in the model."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import transformers.utils.hub
from support.quantised import FP8, change, of_transformers_fp8, save_quantised
from support.tiny import save_tiny_model
from torch import Tensor, nn

from surogate.config.parts import ModelSpec
from surogate.errors import ModelError
from surogate.models.load import load_model, quantisation_of
from surogate.models.source import ModelSource
from surogate.models.weights import SafetensorsReader, defer_, is_deferred


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache with one quantised model, org/tiny; returns its folder."""
    repository = tmp_path / "hub" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    for module, name in ((huggingface_hub.constants, "HF_HUB_CACHE"), (transformers.utils.hub, "HF_HUB_CACHE")):
        monkeypatch.setattr(module, name, str(tmp_path / "hub"), raising=False)
    return save_quantised(repository / "snapshots" / ("a" * 40), of_transformers_fp8(), FP8)


def test_a_quantised_model_of_the_hub_is_found_and_read_from_its_files(hub: Path) -> None:
    spec = ModelSpec(source="org/tiny")
    method = quantisation_of(spec)
    assert method is not None and method.name == "fp8"
    deferred = load_model(spec, defer=True)
    assert all(is_deferred(parameter) for parameter in deferred.parameters())
    local = load_model(ModelSpec(source=str(hub))).state_dict()
    assert all(torch.equal(tensor, local[name]) for name, tensor in load_model(spec).state_dict().items())


def test_a_model_of_the_hub_that_cannot_be_fetched_is_refused(hub: Path) -> None:
    with pytest.raises(ModelError, match="the files of org/other cannot be fetched"):
        ModelSource.of("org/other").downloaded()


def test_a_plain_model_is_not_quantised(tmp_path: Path) -> None:
    assert quantisation_of(ModelSpec(source=str(save_tiny_model(tmp_path)))) is None


def test_the_dequantised_model_does_not_say_that_it_is_quantised_and_ends_where_its_files_say(tmp_path: Path) -> None:
    folder = save_quantised(tmp_path, of_transformers_fp8(), FP8)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    model = load_model(ModelSpec(source=str(folder)))
    assert not hasattr(model.config, "quantization_config") and "quantization_config" not in model.config.to_dict()
    assert model.generation_config.eos_token_id == [2, 7]


def test_random_weights_of_a_quantised_model_s_shape_are_plain(tmp_path: Path) -> None:
    folder = save_quantised(tmp_path, of_transformers_fp8(), {"quant_method": "gptq"})
    spec = ModelSpec(source=str(folder), from_scratch=True)
    assert quantisation_of(spec) is None
    assert not hasattr(load_model(spec).config, "quantization_config")


class Balanced(nn.Module):
    """A module with a buffer that is saved and one that is not."""

    bias: Tensor
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("bias", torch.zeros(2))
        self.register_buffer("table", torch.zeros(2), persistent=False)


def test_buffers_that_a_checkpoint_holds_are_read_unless_they_are_computed(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    ones = {name: torch.ones(2) for name in ("weight", "bias", "table")}
    change(folder, lambda tensors: tensors.update(ones))
    module = Balanced()
    assert not defer_(module, SafetensorsReader([folder / "model.safetensors"]))
    assert module.bias.tolist() == [1, 1] and module.table.tolist() == [0, 0] and is_deferred(module.weight)
