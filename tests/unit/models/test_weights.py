"""Deferred loading: what transformers loads at once, read tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tiny import save_tiny_model
from torch import nn

from surogate.config.parts import LoraSpec, ModelSpec
from surogate.models import lora
from surogate.models.load import load_model
from surogate.models.weights import is_deferred, materialize_

CPU = torch.device("cpu")


def adapted(folder: Path, *, defer: bool) -> nn.Module:
    torch.manual_seed(5)
    model = load_model(ModelSpec(source=str(folder)), defer=defer)
    return lora.inject(model, LoraSpec(rank=4), str(folder))


@pytest.mark.parametrize("tied", [True, False])
def test_a_deferred_model_with_an_adapter_becomes_the_one_loaded_at_once_bit_for_bit(
    tied: bool, tmp_path: Path
) -> None:
    folder = save_tiny_model(tmp_path, tie_word_embeddings=tied)
    at_once, deferred = adapted(folder, defer=False), adapted(folder, defer=True)
    assert all(is_deferred(p) == ("lora" not in name) for name, p in deferred.named_parameters())
    materialize_(deferred, CPU)
    assert not any(p.is_meta for p in deferred.parameters())
    expected, got = at_once.state_dict(), deferred.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    ids = torch.arange(12)[None]
    assert torch.equal(at_once(ids).logits, deferred(ids).logits)  # rotary tables too
    base = deferred.get_base_model()
    assert (base.get_output_embeddings().weight is base.get_input_embeddings().weight) == tied


def test_a_checkpoint_that_does_not_map_one_to_one_is_loaded_at_once(tmp_path: Path) -> None:
    """A checkpoint may hold fused or renamed tensors that only transformers' own loader understands."""
    from safetensors.torch import load_file, save_file

    folder = save_tiny_model(tmp_path)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["something.else"] = tensors.pop("model.norm.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    model = load_model(ModelSpec(source=str(folder)), defer=True)
    assert not any(p.is_meta for p in model.parameters())
