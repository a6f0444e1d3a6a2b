"""ModelExport: leaves `model/` behind, a complete model that transformers and vLLM load."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from surogate.run_folder import RunFolder

log = logging.getLogger(__name__)


class ModelExport(pl.Callback):
    """Write the trained model and its tokenizer when the run is over.

    Args:
        folder: output_dir of the run.
        merge: the run trains an adapter; write its base with the adapter merged into it.
    """

    def __init__(self, folder: str, merge: bool = False) -> None:
        self._model_dir = RunFolder(folder).model_dir
        self._merge = merge

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not on_train_end: Lightning skips that for a run which was killed after its last checkpoint and is continued.
        module: Any = pl_module
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        if not self._merge:
            module.save_model(self._model_dir, tokenizer)  # on every rank, which may hold a share of it
        elif trainer.is_global_zero:
            log.info("%s", module.save_merged_model(self._model_dir, tokenizer))
