"""SurogateCLI with stand-in modules, which the configurations name by class_path."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader

from surogate import run_lock
from surogate.callbacks import StepCheckpoints
from surogate.cli.fit import launch, run
from surogate.config.parts import LoraSpec, ModelSpec
from surogate.errors import CheckpointError, ConfigError, HardwareError, SurogateError
from surogate.run_lock import LOCK_FILE

RUNS: list[dict[str, Any]] = []


class Model(pl.LightningModule):
    def __init__(self, model: ModelSpec = ModelSpec(), lora: LoraSpec = LoraSpec()) -> None:  # noqa: B008
        super().__init__()
        self.automatic_optimization = False
        self.linear = nn.Linear(2, 1)
        self.lora = lora

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.linear(batch).sum())
        optimizer.step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        RUNS.append({"validated": float(self.linear.weight.sum())})

    def on_train_start(self) -> None:
        RUNS.append({"start": self.global_step, "rank": self.lora.rank})

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(pl.LightningDataModule):
    def __init__(self, tokenizer: str = "") -> None:
        super().__init__()
        RUNS.append({"tokenizer": tokenizer})

    def train_dataloader(self) -> Any:
        return DataLoader(torch.ones(8, 2))

    def val_dataloader(self) -> Any:
        return DataLoader(torch.ones(1, 2))


class Interrupting(pl.Callback):
    def on_train_batch_start(self, *args: Any) -> None:
        raise KeyboardInterrupt


class Failing(pl.Callback):
    def on_train_batch_start(self, *args: Any) -> None:
        raise SurogateError("what to do")


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # lightning 2.6.6 under torch 2.13
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable.*"),  # the stand-in's
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]


@pytest.fixture
def nested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    RUNS.clear()
    return {
        "seed_everything": 1,
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 2,
            "default_root_dir": "out",
            "logger": [],
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "callbacks": [callback("surogate.callbacks.StepCheckpoints", folder="out", every_n_steps=1)],
        },
        "model": {
            "class_path": f"{__name__}.Model",
            "init_args": {"model": {"source": "some/model"}, "lora": {"rank": 3}},
        },
        "data": {"class_path": f"{__name__}.Data"},
    }


def callback(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}


def starts() -> list[int]:
    return [entry["start"] for entry in RUNS if "start" in entry]


def test_the_configuration_is_saved_and_reruns_under_fit(nested):
    launch(nested, files={"surogate.yaml": "lora_rank: 3\n"})
    assert Path("out/surogate.yaml").read_text() == "lora_rank: 3\n"
    Path("out").rename("first")
    run("fit", ["--config", "first/config.yaml"])
    assert [entry for entry in RUNS if "start" in entry] == [{"start": 0, "rank": 3}] * 2
    assert Path("out/config.yaml").read_text() == Path("first/config.yaml").read_text()


def held_by_another_command(folder: Path) -> int:
    """Lock a folder as a second process would: for the kernel another open file is another holder."""
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.write(descriptor, b'{"pid": 4711, "host": "node-a"}')
    return descriptor


def test_a_folder_that_another_command_writes_into_is_left_alone(nested, monkeypatch):
    monkeypatch.setattr(run_lock, "GRACE_SECONDS", 0.0)
    descriptor = held_by_another_command(Path("out"))
    with pytest.raises(CheckpointError, match=r"output_dir: out is being written .* process 4711 on node-a"):
        launch(nested)
    assert [path.name for path in Path("out").iterdir()] == [LOCK_FILE] and not starts()
    run("validate", ["--config", nested_file(nested)])  # which only reads
    os.close(descriptor)
    launch(nested)
    assert starts() == [0] and not run_lock._held


def test_a_trainer_without_the_command_line_is_kept_out_too(nested, monkeypatch):
    monkeypatch.setattr(run_lock, "GRACE_SECONDS", 0.0)
    descriptor = held_by_another_command(Path("out"))
    settings = {**nested["trainer"], "callbacks": [StepCheckpoints("out", every_n_steps=1)]}
    with pytest.raises(CheckpointError, match="being written by another command"):
        pl.Trainer(**settings).fit(Model(), datamodule=Data())
    os.close(descriptor)
    pl.Trainer(**settings).fit(Model(), datamodule=Data())
    assert not run_lock._held


def nested_file(nested: dict[str, Any]) -> str:
    measured = {**nested, "trainer": {**nested["trainer"], "limit_val_batches": 1}}
    Path("nested.yaml").write_text(yaml.safe_dump(measured))
    return "nested.yaml"


def test_options_win_over_files_and_later_files_over_earlier_ones(nested, tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(nested))
    (tmp_path / "b.yaml").write_text("model: {init_args: {lora: {rank: 5}}}\ntrainer: {max_steps: 1}\n")
    run("fit", ["--config", "a.yaml", "--config", "b.yaml", "--trainer.max_steps", "3"])
    saved = yaml.safe_load(Path("out/config.yaml").read_text())
    assert saved["model"]["init_args"]["lora"]["rank"] == 5
    assert saved["trainer"]["max_steps"] == 3


@pytest.mark.parametrize(
    ("init_args", "error", "sentence"),
    [
        ({"recipe": "fp7"}, ConfigError, r"^recipe must be one of bf16, fp8_hybrid, nvfp4"),
        ({"recipe_options": {"emulat": True}}, ConfigError, r"^recipe bf16: emulat is not a field"),
        ({"recipe": "fp8_hybrid"}, HardwareError, r"^recipe: fp8_hybrid computes in float8_e4m3 on tensor cores"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused_before_data_and_model_are_read(nested, init_args, error, sentence):
    nested["trainer"]["plugins"] = [{"class_path": "surogate.precision.RecipePrecision", "init_args": init_args}]
    with pytest.raises(error, match=sentence):
        launch(nested)
    assert not starts() and not Path("out").exists()


def test_the_tokenizer_is_the_models_unless_it_is_set(nested):
    launch(nested)
    nested["data"]["init_args"] = {"tokenizer": "another"}
    nested["trainer"]["default_root_dir"] = "out2"
    nested["trainer"]["callbacks"] = []
    launch(nested)
    assert [entry["tokenizer"] for entry in RUNS if "tokenizer" in entry] == ["some/model", "another"]


def test_a_stopped_run_continues_and_a_finished_one_says_so(nested, caplog):
    launch(nested)
    with caplog.at_level("INFO", logger="surogate"):
        launch(nested)
    assert starts() == [0]
    assert "is finished" in caplog.text
    nested["trainer"]["max_steps"] = 4
    launch(nested)
    assert starts() == [0, 2]


def test_ckpt_path_may_be_a_folder_and_is_not_saved(nested, tmp_path):
    launch(nested)
    (tmp_path / "n.yaml").write_text(yaml.safe_dump({**nested, "trainer": {**nested["trainer"], "max_steps": 3}}))
    run("fit", ["--config", "n.yaml", "--ckpt_path", "out/checkpoints/step_1"])
    assert starts() == [0, 1]
    assert "ckpt_path" not in yaml.safe_load(Path("out/config.yaml").read_text())


def test_a_checkpoint_that_is_not_there_is_told_before_anything_is_loaded(nested, tmp_path):
    (tmp_path / "n.yaml").write_text(yaml.safe_dump(nested))
    with pytest.raises(CheckpointError, match="there is no checkpoint at gone"):
        run("fit", ["--config", "n.yaml", "--ckpt_path", "gone"])


def test_the_folder_of_another_run_keeps_its_configuration(nested):
    launch(nested)
    before = Path("out/config.yaml").read_text()
    nested["trainer"]["callbacks"] = [callback("surogate.callbacks.StepCheckpoints", folder="out", identity={"a": 1})]
    Path("out/run.json").write_text('{"a": 2}')
    with pytest.raises(CheckpointError, match="different run"):
        launch(nested)
    assert Path("out/config.yaml").read_text() == before


def test_another_model_in_the_same_folder_is_refused_also_from_the_saved_configuration(nested):
    launch(nested)
    with pytest.raises(CheckpointError, match=r"lora.rank: 3 there, 5 here"):
        run("fit", ["--config", "out/config.yaml", "--model.init_args.lora.rank", "5"])
    assert starts() == [0]


def test_what_writes_into_the_folder_of_the_run_follows_it_to_another(nested):
    loggers = [{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "out"}}]
    loggers.append({"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "elsewhere"}})
    nested["trainer"] |= {"logger": loggers, "log_every_n_steps": 1}
    launch(nested)
    before = Path("out/config.yaml").read_text()
    run("fit", ["--config", "out/config.yaml", "--trainer.default_root_dir", "new", "--model.init_args.lora.rank", "5"])
    assert [entry["rank"] for entry in RUNS if "start" in entry] == [3, 5]
    assert Path("new/checkpoints/step_2").is_dir()
    assert Path("out/config.yaml").read_text() == before
    saved = yaml.safe_load(Path("new/config.yaml").read_text())["trainer"]
    assert saved["callbacks"][0]["init_args"]["folder"] == "new"
    assert [logger["init_args"]["save_dir"] for logger in saved["logger"]] == ["new", "elsewhere"]
    run("fit", ["--config", "new/config.yaml", "--trainer.max_steps", "3"])
    assert starts() == [0, 0, 2]


def test_a_callback_with_a_folder_of_its_own_stays_there(nested, tmp_path):
    nested["trainer"]["callbacks"] = [callback("surogate.callbacks.StepCheckpoints", folder="apart")]
    (tmp_path / "n.yaml").write_text(yaml.safe_dump(nested))
    run("fit", ["--config", "n.yaml", "--trainer.default_root_dir", "new"])
    assert Path("apart/checkpoints/step_2").is_dir()


def test_validation_takes_the_newest_checkpoint_or_the_base_model(nested, tmp_path, caplog):
    nested["trainer"]["limit_val_batches"] = None
    (tmp_path / "n.yaml").write_text(yaml.safe_dump(nested))
    with caplog.at_level("INFO", logger="surogate"):
        run("validate", ["--config", "n.yaml"])
        launch({**nested, "trainer": {**nested["trainer"], "limit_val_batches": 0}})
        run("validate", ["--config", "n.yaml"])
    before, after = [entry["validated"] for entry in RUNS if "validated" in entry]
    assert after == pytest.approx(before - 2 * 2 * 0.1)
    assert "Validating the model without any training" in caplog.text
    assert "step_2" in caplog.text


def test_validation_leaves_the_configuration_of_the_run_alone(nested, tmp_path):
    launch(nested)
    before = Path("out/config.yaml").read_text()
    nested["trainer"]["limit_val_batches"] = 1
    (tmp_path / "n.yaml").write_text(yaml.safe_dump(nested))
    run("validate", ["--config", "n.yaml"])
    assert Path("out/config.yaml").read_text() == before


def test_validation_without_data_for_it_is_refused(nested, tmp_path):
    (tmp_path / "n.yaml").write_text(yaml.safe_dump(nested))
    with pytest.raises(ConfigError, match="limit_val_batches is 0"):
        run("validate", ["--config", "n.yaml"])


def test_an_interrupt_is_an_interrupt(nested):
    nested["trainer"]["callbacks"].append(callback(f"{__name__}.Interrupting"))
    with pytest.raises(KeyboardInterrupt):
        launch(nested)


def test_an_error_for_the_user_comes_through_as_it_is(nested):
    nested["trainer"]["callbacks"].append(callback(f"{__name__}.Failing"))
    with pytest.raises(SurogateError, match=r"^what to do$"):
        launch(nested)


def test_a_device_that_is_not_there_is_a_hardware_error(nested):
    nested["trainer"]["devices"] = "many"
    with pytest.raises(HardwareError, match="trainer: "):
        launch(nested)


def test_a_wrong_type_names_the_key(nested, tmp_path):
    (tmp_path / "n.yaml").write_text(yaml.safe_dump(nested))
    with pytest.raises(ConfigError, match=r"^model.init_args.lora.rank must be int, got 'many'\.$"):
        run("fit", ["--config", "n.yaml", "--model.init_args.lora.rank", "many"])


def test_print_config_shows_the_merged_configuration(nested, tmp_path, capsys):
    (tmp_path / "n.yaml").write_text(yaml.safe_dump(nested))
    with pytest.raises(SystemExit) as exit_:
        run("fit", ["--config", "n.yaml", "--trainer.max_steps", "9", "--print_config"])
    assert exit_.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_steps"] == 9
    assert not RUNS


def test_no_pickle_in_a_checkpoint_is_executed(nested, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    (tmp_path / "n.yaml").write_text(yaml.safe_dump(nested))
    with pytest.raises(CheckpointError):
        run("fit", ["--config", "n.yaml", "--ckpt_path", "evil.ckpt"])
    assert not (tmp_path / "executed").exists()


def test_the_stand_ins_use_the_real_checkpoints():
    assert StepCheckpoints("out").finished() is False
