from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from surogate.callbacks import FinalValidation

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # lightning 2.6.6 under torch 2.13
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]


class Model(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)
        self.validated: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.linear(batch).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(self.global_step)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("goal", "interval", "validated"),
    [
        ({"max_steps": 3}, 100, [3]),
        ({"max_steps": 5}, 2, [2, 4, 5]),
        ({"max_steps": 4}, 2, [2, 4]),
        ({"max_epochs": 2}, 100, [8]),
        ({"max_epochs": 2}, 3, [3, 6, 8]),
    ],
    ids=str,
)
def test_the_last_step_is_always_validated_and_only_once(tmp_path: Path, goal, interval, validated):
    model = Model()
    trainer = pl.Trainer(
        **{"max_steps": -1, "max_epochs": -1, **goal},
        val_check_interval=interval,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[FinalValidation()],
    )
    trainer.fit(model, DataLoader(torch.ones(4, 1)), DataLoader(torch.ones(1, 1)))
    assert model.validated == validated
