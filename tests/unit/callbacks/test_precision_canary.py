"""The canary sees a spoiled layer, names it, and leaves every bit of the run as it was."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from support.tiny import Recorder, fit, random_rows, save_tiny_model, step_batch

from surogate.callbacks import MetricsWriter, PrecisionCanary
from surogate.callbacks.metrics import read_records
from surogate.callbacks.precision_canary import RECIPE_LIMITS, STORAGE_LIMITS, evenly_spaced
from surogate.config.parts import LoraSpec, ModelSpec, OptimSpec
from surogate.modes import SftModule
from surogate.precision import Fp8Precision, Nf4Precision, Nvfp4Precision, RecipePrecision
from surogate.quant.compute_fp8 import Fp8Gemm

PLUGINS: dict[str, Any] = {
    "nf4": Nf4Precision,
    "fp8": lambda: Fp8Precision(block_size=64),
    "nvfp4": Nvfp4Precision,
    "fp8 arithmetic": lambda: RecipePrecision("fp8_hybrid", {"emulate": True}),
    "nvfp4 arithmetic on nf4": lambda: Nf4Precision(recipe="nvfp4", recipe_options={"emulate": True}),
}


class Spoil(pl.Callback):
    """Breaks one layer before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step + 1 == self.step:
            layer = module.model.get_submodule("base_model.model.model.layers.1.mlp.down_proj.base_layer")
            layer.stored.scale.mul_(3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}
    return save_tiny_model(tmp_path_factory.mktemp("base"), initializer_range=0.1, **shape)


def train(
    base: Path, plugin: Any, *callbacks: pl.Callback, recompute: bool = True, **changes: Any
) -> tuple[SftModule, list[dict[str, float]]]:
    torch.manual_seed(0)
    optim = OptimSpec(name="adamw", learning_rate=1e-2, schedule="constant")
    lora = LoraSpec(rank=4, alpha=8.0, dropout=0.1, **changes)
    module = SftModule(ModelSpec(source=str(base), recompute=recompute), lora, optim)
    batches = [step_batch([[random_rows(4, seed)], [random_rows(3, 50 + seed)]]) for seed in range(6)]
    recorder = Recorder()
    steps = fit(module, batches, recorder, plugins=[plugin], callbacks=[recorder, *callbacks])
    return module, steps


def records(folder: Path) -> dict[int, dict[str, float]]:
    found = [r for r in read_records(folder / "metrics.jsonl") if any(name.startswith("precision/") for name in r)]
    return {record.pop("step"): record for record in found}


@pytest.mark.parametrize("name", PLUGINS)
def test_every_k_steps_the_layers_are_logged_and_nobody_is_warned_of_a_sound_one(
    base: Path, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    canary = PrecisionCanary(every_n_steps=3, num_layers=14)
    train(base, PLUGINS[name](), MetricsWriter(str(tmp_path)), canary, recompute=False)
    found = records(tmp_path)
    assert list(found) == [1, 3, 6]
    assert not [record for record in caplog.records if record.name.startswith("surogate.callbacks")]
    snr = {key: value for key, value in found[6].items() if key.endswith("/output_snr_db")}
    cosines = {key: value for key, value in found[6].items() if key.endswith("/grad_cosine")}
    assert len(snr) == 14 and "precision/model.layers.1.mlp.down_proj/output_snr_db" in snr
    assert len(cosines) == 11, "of all layers but the first q, k and v, whose inputs are frozen embeddings"
    assert all(5 < value < 50 for value in snr.values()) and all(0.85 < value <= 1 for value in cosines.values())


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("name", PLUGINS)
def test_a_run_has_the_same_bits_with_and_without_it(base: Path, name: str, tmp_path: Path, recompute: bool) -> None:
    without, expected = train(base, PLUGINS[name](), recompute=recompute)
    canary = PrecisionCanary(every_n_steps=1, num_layers=14)
    watched, got = train(base, PLUGINS[name](), MetricsWriter(str(tmp_path)), canary, recompute=recompute)
    assert got == expected and len(records(tmp_path)) == 6
    others = dict(watched.named_parameters())
    assert all(parameter.equal(others[name]) for name, parameter in without.named_parameters())
    hooks = [[len(m._forward_hooks) for m in module.modules()] for module in (without.model, watched.model)]
    assert hooks[0] == hooks[1]


def test_weights_that_train_are_compared_as_they_were_in_the_step(base: Path, tmp_path: Path) -> None:
    plugin = PLUGINS["fp8 arithmetic"]()
    train(base, plugin, MetricsWriter(str(tmp_path)), PrecisionCanary(every_n_steps=2, num_layers=14), enabled=False)
    snr = [value for record in records(tmp_path).values() for key, value in record.items() if key.endswith("snr_db")]
    assert len(snr) == 4 * 14 and min(snr) > RECIPE_LIMITS[Fp8Gemm].snr_db


def test_random_numbers_are_not_touched(base: Path, tmp_path: Path) -> None:
    states = []
    for callbacks in ([], [PrecisionCanary(1)]):
        train(base, Nf4Precision(), *callbacks)
        states.append(torch.get_rng_state())
    assert states[0].equal(states[1])


def test_a_layer_with_a_broken_scale_is_named_once(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    canary = PrecisionCanary(every_n_steps=1, num_layers=14)
    with caplog.at_level(logging.WARNING, "surogate"):
        train(base, Fp8Precision(block_size=64), MetricsWriter(str(tmp_path)), Spoil(step=4), canary)
    warnings = [record.getMessage() for record in caplog.records if "Precision:" in record.getMessage()]
    assert len(warnings) == 1
    assert "model.layers.1.mlp.down_proj has a signal-to-noise ratio of -6.0 dB (limit 24)" in warnings[0]
    broken, sound = records(tmp_path)[5], records(tmp_path)[3]
    key = "precision/model.layers.1.mlp.down_proj/output_snr_db"
    assert sound[key] > STORAGE_LIMITS["fp8"].snr_db and broken[key] == pytest.approx(-6.02, abs=0.3)


@pytest.mark.parametrize("changes", [{"init_lora_weights": "pissa"}])
def test_a_base_that_was_changed_before_is_compared_with_itself_and_said_so(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any]
) -> None:
    with caplog.at_level(logging.WARNING, "surogate"):
        train(base, Nf4Precision(), MetricsWriter(str(tmp_path)), PrecisionCanary(6), **changes)
    said = [r.getMessage() for r in caplog.records if "precision_canary_steps" in r.getMessage()]
    assert len(said) == 1 and "changed the base before, so there are no original weights" in said[0]
    assert all(value > 60 for key, value in records(tmp_path)[6].items() if key.endswith("snr_db"))


def test_where_nothing_is_in_few_bits_it_says_so_once_and_rests(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "surogate"):
        train(base, RecipePrecision(), MetricsWriter(str(tmp_path)), PrecisionCanary(1))
    assert [r.getMessage() for r in caplog.records if r.name.startswith("surogate.callbacks")] == [
        "precision_canary_steps: no layer is stored or computed in few bits, so nothing is watched."
    ]
    assert records(tmp_path) == {}


def test_loggers_get_the_numbers_where_no_writer_is(base: Path) -> None:
    class Log:
        seen: list[tuple[int, dict[str, float]]] = []  # noqa: RUF012

        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            self.seen.append((step, metrics))

    canary, log = PrecisionCanary(2), Log()
    canary._metrics = {"precision/a/output_snr_db": 20.0}
    trainer: Any = type("T", (), {"callbacks": [canary], "loggers": [log], "global_step": 4})()
    canary.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
    canary.on_train_batch_end(trainer, None, None, None, 1)  # type: ignore[arg-type]
    assert log.seen == [(4, {"precision/a/output_snr_db": 20.0})]


def test_layers_are_evenly_spaced_and_the_seed_chooses_among_them() -> None:
    names = [f"layer {i}" for i in range(100)]
    chosen = evenly_spaced(names, 4, seed=1)
    places = [names.index(name) for name in chosen]
    assert all(25 * part <= place < 25 * (part + 1) for part, place in enumerate(places))
    assert evenly_spaced(names, 4, seed=1) == chosen != evenly_spaced(names, 4, seed=2)
    assert evenly_spaced(names[:2], 4, seed=1) == names[:2] and evenly_spaced([], 4, seed=1) == []


def test_a_canary_can_be_copied(base: Path) -> None:
    assert copy.deepcopy(PrecisionCanary(5)).every_n_steps == 5
