"""Names are checked on a model without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.tiny import save_tiny_model

from surogate.config.parts import LoraSpec, ModelSpec
from surogate.errors import ModelError
from surogate.models.skeleton import check_module_names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_model(tmp_path_factory.mktemp("model"))
    (folder / "model.safetensors").unlink()  # nothing may read it
    return folder


GOOD: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({}, {"target_modules": ["q_proj", "layers.0.mlp.up_proj"], "modules_to_save": ["lm_head"]}),
    ({"freeze_modules": ["embeddings", "layers.1"]}, {"enabled": False}),
    ({"freeze_modules": ["typo"]}, {"enabled": True}),
]
BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"target_modules": ["q_projj"]}, "lora_target_modules.*q_projj"),
    ({}, {"modules_to_save": ["head"]}, "modules_to_save: the model has no module named head"),
    ({"freeze_modules": ["layers.7"]}, {"enabled": False}, r"freeze_modules: the model has no module named layers\.7"),
]


@pytest.mark.parametrize(("model", "adapter"), GOOD)
def test_names_that_the_model_has_are_accepted(folder: Path, model: Any, adapter: Any) -> None:
    check_module_names(ModelSpec(source=str(folder), **model), LoraSpec(**adapter))


@pytest.mark.parametrize(("model", "adapter", "sentence"), BAD)
def test_names_that_it_has_not_are_refused(folder: Path, model: Any, adapter: Any, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        check_module_names(ModelSpec(source=str(folder), **model), LoraSpec(**adapter))
