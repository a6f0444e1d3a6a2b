"""Which layers of a model are stored in few bits, and which are not."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import save_family
from support.tiny import save_tiny_model
from torch import Tensor, nn

from surogate.config.parts import LoraSpec, ModelSpec
from surogate.errors import ConfigError, ModelError
from surogate.models import lora
from surogate.models.load import load_model
from surogate.models.weights import ParameterSource, materialize_
from surogate.precision import Nf4Precision
from surogate.quant.convert import Conversion, Skip, convert_
from surogate.quant.fp4 import Nvfp4Format
from surogate.quant.linear import FrozenQuantLinear
from surogate.quant.nf4 import Nf4Format
from surogate.quant.stored import StorageFormat

CPU = torch.device("cpu")


def adapted(folder: Path, *, defer: bool = True, **lora_args: Any) -> nn.Module:
    torch.manual_seed(5)
    model = load_model(ModelSpec(source=str(folder)), defer=defer)
    return lora.inject(model, LoraSpec(rank=4, **lora_args), str(folder))


def convert(model: nn.Module, storage: StorageFormat | None = None, **skip: Any) -> Conversion:
    storage = storage or Nf4Format()
    return convert_(model, storage, Skip(**skip), device=CPU, source=ParameterSource(), num_layers=2)


def stored_names(model: nn.Module) -> set[str]:
    names = {name for name, module in model.named_modules() if isinstance(module, FrozenQuantLinear)}
    return {name.removeprefix("base_model.model.model.").removesuffix(".base_layer") for name in names}


def test_every_frozen_linear_layer_is_stored_but_the_head_and_the_adapter(tmp_path: Path) -> None:
    for tied in (True, False):
        model = adapted(save_tiny_model(tmp_path / str(tied), tie_word_embeddings=tied))
        conversion = convert(model)
        assert len(stored_names(model)) == 14 and conversion.formats.total() == 14
        assert all(".self_attn." in name or ".mlp." in name for name in stored_names(model))
        assert conversion.kept == ({} if tied else {"lm_head": "the LM head"})
        materialize_(model, CPU)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trained and all("lora_" in name for name in trained)
        assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def test_a_deferred_model_is_stored_as_one_that_was_loaded_at_once(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    states = []
    for defer in (True, False):
        model = adapted(folder, defer=defer)
        convert(model)
        materialize_(model, CPU)
        states.append(model.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_one_weight_at_a_time_is_alive_while_a_model_is_stored(tmp_path: Path) -> None:
    """What makes the peak `stored model + one layer`: nothing keeps a tensor once it is stored."""
    model = adapted(save_tiny_model(tmp_path))
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    class Watching(ParameterSource):
        def read(self, parameter: Tensor) -> Tensor:
            nonlocal most
            gc.collect()
            values = super().read(parameter)
            alive.append(weakref.ref(values))
            most = max(most, sum(ref() is not None for ref in alive))
            return values

    convert_(model, Nf4Format(), Skip(), device=CPU, source=Watching())
    assert len(alive) == 14 and most == 1


def test_first_and_last_layers_and_named_modules_can_stay_as_they_are(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, num_hidden_layers=4)

    def stored(**skip: Any) -> set[str]:
        model = adapted(folder)
        convert_(model, Nf4Format(), Skip(**skip), device=CPU, source=ParameterSource(), num_layers=4)
        return {name.split(".")[1] for name in stored_names(model)}

    assert stored(first_layers=1, last_layers=2) == {"1"}
    assert stored(first_layers=2) == {"2", "3"}
    assert stored(modules=("layers.0", "layers.[12]")) == {"3"}
    model = adapted(folder)
    conversion = convert(model, modules=("q_proj",))
    assert len(stored_names(model)) == 4 * 6 and len(conversion.kept) == 4
    assert "not quantised: model.layers.0.self_attn.q_proj (skipped)" in str(conversion)


@pytest.mark.parametrize(
    ("skip", "sentence"),
    [
        ({"first_layers": 1, "last_layers": 1}, "leave none of the 2 decoder layers to quantise. Lower them"),
        ({"modules": ("q_porj",)}, "no layer of this model is named q_porj; there are, for example,"),
        ({"modules": ("q_proj(",)}, r"skip_modules: q_proj\( is neither a name nor a regular expression"),
        ({"modules": ("self_attn", "mlp")}, "No linear layer of this model can be stored in nf4"),
    ],
)
def test_a_skip_that_matches_nothing_or_everything_is_refused(
    tmp_path: Path, skip: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        convert(adapted(save_tiny_model(tmp_path)), **skip)


def test_layers_whose_dimensions_do_not_divide_stay_and_are_named(tmp_path: Path) -> None:
    model = adapted(save_tiny_model(tmp_path, intermediate_size=40))
    conversion = convert(model, Nvfp4Format())
    assert set(conversion.kept) == {"model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"}
    assert "model.layers.0.mlp.down_proj (40 columns are not a multiple of 16)" in str(conversion)
    assert conversion.formats.total() == 12


def test_experts_that_stay_as_they_are_are_named_and_their_share_is_told(tmp_path: Path) -> None:
    model = adapted(save_family(tmp_path, "Qwen3Moe"), target_modules=["q_proj"])
    text = str(convert(model))
    assert "model.layers.0.mlp.experts.gate_up_proj (of a Qwen3MoeExperts)" in text
    assert re.search(r"; [5-9]\d% of the frozen weights stay as they are", text)


def test_a_broken_weight_is_named(tmp_path: Path) -> None:
    model = adapted(save_tiny_model(tmp_path), defer=False)
    model.get_submodule("base_model.model.model.layers.1.mlp.up_proj").base_layer.weight.data[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"model.layers.1.mlp.up_proj.weight: it holds NaN or infinity"):
        convert(model)


def test_modules_that_train_whole_are_not_stored(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, tie_word_embeddings=False)
    model = adapted(folder, defer=False, modules_to_save=["lm_head"], target_modules=["q_proj"])
    convert(model)
    assert not any("lm_head" in name for name in stored_names(model))


def test_biases_and_untouched_modules_stay_in_the_models_dtype(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, attention_bias=True, dtype=torch.bfloat16)
    model = load_model(ModelSpec(source=str(folder), dtype="float16"), torch.device("meta"), defer=True)
    model.requires_grad_(False)
    convert(model)
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    assert isinstance(layer, FrozenQuantLinear)
    assert layer.bias is not None and layer.bias.dtype == torch.float16 and layer.weight.dtype == torch.float16


def test_progress_is_shown_layer_by_layer(tmp_path: Path) -> None:
    seen: list[str] = []

    def watch(layers: list[Any]) -> Iterator[Any]:
        for layer in layers:
            seen.append(layer.name)
            yield layer

    model = adapted(save_tiny_model(tmp_path))
    convert_(model, Nf4Format(), Skip(), device=CPU, source=ParameterSource(), progress=watch)
    assert len(seen) == 14 and seen[0] == "model.layers.0.self_attn.q_proj"


def test_ranks_do_not_send_stored_weights_around(tmp_path: Path) -> None:
    """DDP broadcasts buffers in every step unless it is told not to; these would be gigabytes."""
    module = torch.nn.Sequential(adapted(save_tiny_model(tmp_path)))
    Nf4Precision().convert_module(module)
    ignored = set(module._ddp_params_and_buffers_to_ignore)
    buffers = {name for name, _ in module.named_buffers()}
    assert ignored == {name for name in buffers if ".stored." in name} and len(ignored) == 14 * 6


def test_parts_of_an_adapter_that_do_not_train_are_not_stored_either(tmp_path: Path) -> None:
    """MiCA trains A alone, and an adapter that is only used trains nothing."""
    model = adapted(save_tiny_model(tmp_path), defer=False, init_lora_weights="mica").requires_grad_(False)
    convert(model)
    assert len(stored_names(model)) == 14 and not any("lora_" in name for name in stored_names(model))
