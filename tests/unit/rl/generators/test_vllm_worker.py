"""What the generator adds to vLLM's workers, without vLLM."""

from __future__ import annotations

import json
import tempfile
from base64 import b64encode
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from surogate.errors import GeneratorError
from surogate.rl.generators.vllm_worker import WorkerExtension, complete_weights, stored_names, stored_weights

HIDDEN = 8


class TinyRMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size))


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"norm": TinyRMSNorm(HIDDEN), "q_norm": TinyRMSNorm(4)})])
        self.final = TinyRMSNorm(HIDDEN)
        self.projection = nn.Linear(HIDDEN, HIDDEN)


def worker_of(model: nn.Module) -> Any:
    worker = WorkerExtension()
    config = SimpleNamespace(get_hidden_size=lambda: HIDDEN)
    worker.model_runner = SimpleNamespace(get_model=lambda: model, model_config=config)
    return worker


def test_noise_has_its_size_and_repeats_and_goes_away_exactly() -> None:
    model = Tiny()
    worker = worker_of(model)
    quiet = {name: p.detach().clone() for name, p in model.named_parameters()}

    def noise() -> torch.Tensor:
        return torch.cat([model.final.weight - quiet["final.weight"], next(model.parameters()) - quiet_first]).detach()

    quiet_first = next(model.parameters()).detach().clone()
    worker.add_norm_noise(0.1, 1)
    first = noise()
    worker.add_norm_noise(0.1, 2)
    other = noise()
    worker.add_norm_noise(0.1, 1)
    assert torch.equal(noise(), first)
    assert not torch.equal(other, first)
    assert 0.03 < first.std() < 0.2
    assert torch.equal(model.layers[0]["q_norm"].weight, quiet["layers.0.q_norm.weight"])
    assert torch.equal(model.projection.weight, quiet["projection.weight"])
    worker.add_norm_noise(0.0, 3)
    assert all(torch.equal(p, quiet[name]) for name, p in model.named_parameters())


def test_a_model_without_norms_has_no_noise_to_take() -> None:
    with pytest.raises(GeneratorError, match="finds no RMS norm"):
        worker_of(nn.Linear(HIDDEN, HIDDEN)).add_norm_noise(0.1, 0)


def test_a_tied_head_is_added_and_an_own_one_is_not() -> None:
    embedding, head = torch.ones(2), torch.zeros(2)
    given = [("model.embed_tokens.weight", embedding), ("model.norm.weight", torch.ones(1))]
    tied = dict(complete_weights(given, {"model.embed_tokens.weight", "lm_head.weight"}, True))
    assert tied["lm_head.weight"] is embedding
    own = dict(complete_weights([*given, ("lm_head.weight", head)], {"lm_head.weight"}, True))
    assert own["lm_head.weight"] is head
    assert "lm_head.weight" not in dict(complete_weights(given, set(), False))


def test_weights_that_do_not_come_are_an_error() -> None:
    with pytest.raises(GeneratorError, match=r"lack 2 of the 3 tensors of the model, such as b"):
        list(complete_weights([("a", torch.ones(1))], {"a", "b", "lm_head.weight"}, False))


def test_files_are_read_one_tensor_at_a_time(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "1.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "2.safetensors")
    assert [(name, len(tensor)) for name, tensor in stored_weights(tmp_path)] == [("a", 2), ("b", 3)]
    assert stored_names(tmp_path) == ["a", "b"]
    with pytest.raises(GeneratorError, match=r"has no \*\.safetensors"):
        list(stored_weights(tmp_path / "none"))


def test_an_adapter_is_written_where_the_worker_runs_and_dropped_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    worker = WorkerExtension()
    tensors = save({"w": torch.ones(2)})
    folder = Path(worker.put_adapter("client/policy-1", b64encode(tensors).decode(), json.dumps({"r": 8})))
    assert folder == tmp_path / "client" / "policy-1"
    assert (folder / "adapter_model.safetensors").read_bytes() == tensors
    assert json.loads((folder / "adapter_config.json").read_text()) == {"r": 8}
    worker.drop_adapter("client/policy-1")
    worker.drop_adapter("client/policy-1")
    assert not folder.exists()
