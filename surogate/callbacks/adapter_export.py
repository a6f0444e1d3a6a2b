"""AdapterExport: leaves `adapter/` behind, ready for PEFT, transformers and vLLM."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from surogate.run_folder import RunFolder, draft_folder


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
        with draft_folder(self._adapter_dir) as draft:
            module.save_adapter(draft)
            data.tokenizer.save_pretrained(draft)
