"""AdapterExport: leaves `adapter/` behind, ready for PEFT, transformers and vLLM."""

from __future__ import annotations

import shutil
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from surogate.errors import CheckpointError
from surogate.run_folder import RunFolder, replace_folder


class AdapterExport(pl.Callback):
    """Write the trained adapter and its tokenizer when the run is over.

    Args:
        folder: output_dir of the run.
    """

    def __init__(self, folder: str) -> None:
        self._adapter_dir = RunFolder(folder).adapter_dir

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not on_train_end: Lightning skips that for a run which was killed after its last checkpoint and is continued.
        if not trainer.is_global_zero:
            return
        module: Any = pl_module
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        draft = self._adapter_dir.with_name("adapter.tmp")
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            module.save_adapter(draft)
            data.tokenizer.save_pretrained(draft)
            replace_folder(draft, self._adapter_dir)
        except OSError as error:
            raise CheckpointError(
                f"The adapter could not be written to {self._adapter_dir}: {error.strerror or error}. "
                "Make room; the same command then continues from the last checkpoint."
            ) from error
