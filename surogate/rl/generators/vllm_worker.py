"""What runs inside vLLM: the methods that the generator adds to its workers, and the plugin that each process loads.

vLLM mixes `WorkerExtension` into its worker class (worker_extension_cls) and calls it by name through collective_rpc,
in the trainer's process and in a server's. What is not here: anything of the caller's side. The one idea: weights
change between two steps of the engine, and what was computed with the old ones is dropped by the caller
(reset_prefix_cache).
"""

from __future__ import annotations

import base64
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
from torch import Tensor, nn

from surogate.errors import GeneratorError
from surogate.rl.generators import vllm_cpu_lora, vllm_cpu_sampling
from surogate.rl.generators.vllm_process import DIE_WITH_PARENT, die_with_parent

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"


class WorkerExtension:
    """Methods of a worker; `self` is also vLLM's worker, with a model_runner."""

    model_runner: Any
    _quiet_norms: dict[str, Tensor] | None = None
    """Norm weights as they were without noise."""

    def load_merged(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights by an iterator's, which has the names of the checkpoint that the engine began with."""
        self.remove_norm_noise()
        config = self.model_runner.model_config
        complete = complete_weights(
            weights,
            expected=set(stored_names(Path(config.model))),
            is_tied=bool(getattr(config.hf_text_config, "tie_word_embeddings", False)),
        )
        with torch.no_grad():
            self.model_runner.reload_weights(weights_iterator=complete)

    def load_merged_files(self, folder: str) -> None:
        """Replace all weights by those in a folder's *.safetensors."""
        self.load_merged(stored_weights(Path(folder)))

    def put_adapter(self, name: str, tensors: str, config: str) -> str:
        """Write an adapter where this worker runs, for trainers that share no disk with it, and return the folder.

        Args:
            name: path below the folder for temporary files, the same for all workers of a machine.
            tensors: adapter_model.safetensors in base64.
            config: adapter_config.json.
        """
        folder = Path(gettempdir(), name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_model.safetensors").write_bytes(base64.b64decode(tensors))
        (folder / "adapter_config.json").write_text(config)
        return str(folder)

    def drop_adapter(self, name: str) -> None:
        """Delete what `put_adapter` wrote, if it did."""
        shutil.rmtree(Path(gettempdir(), name), ignore_errors=True)

    def add_norm_noise(self, sigma: float, seed: int) -> None:
        """Add Gaussian noise to the norm weights of the hidden states (QeRL, arXiv:2510.11696, section 3.3).

        The same noise on every worker, whatever its device. Norms inside the attention (of queries and keys) have none:
        QeRL's models do not have them.

        Args:
            sigma: standard deviation; 0 only takes old noise away.
        """
        self.remove_norm_noise()
        if not sigma:
            return
        rng = torch.Generator().manual_seed(seed)
        self._quiet_norms = {}
        for name, weight in self._hidden_norms():
            self._quiet_norms[name] = weight.detach().clone()
            noise = torch.randn(weight.shape, generator=rng) * sigma
            weight.data.add_(noise.to(weight.device, weight.dtype))

    def remove_norm_noise(self) -> None:
        """Put the norm weights back exactly."""
        if self._quiet_norms is None:
            return
        for name, weight in self._hidden_norms():
            weight.data.copy_(self._quiet_norms[name])
        self._quiet_norms = None

    def _hidden_norms(self) -> list[tuple[str, nn.Parameter]]:
        runner = self.model_runner
        return hidden_norms(runner.get_model(), runner.model_config.get_hidden_size())


def hidden_norms(model: nn.Module, hidden_size: int) -> list[tuple[str, nn.Parameter]]:
    """Return the weights of the RMS norms over the hidden size.

    Raises:
        GeneratorError: there are none.
    """
    found = [
        (f"{name}.weight", module.weight)
        for name, module in model.named_modules()
        if type(module).__name__.endswith("RMSNorm") and getattr(module, "weight", None) is not None
    ]
    norms = [(name, weight) for name, weight in found if weight.numel() == hidden_size]
    if not norms:
        raise GeneratorError("noise_scheduler finds no RMS norm in this model as vLLM builds it: turn it off")
    return norms


def stored_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a folder's *.safetensors, one at a time."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise GeneratorError(f"{folder} has no *.safetensors")
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                yield name, file.get_tensor(name)


def stored_names(folder: Path) -> list[str]:
    """Return the names of the tensors of a folder's *.safetensors."""
    from safetensors import safe_open

    names: list[str] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names += file.keys()
    return names


def complete_weights(
    weights: Iterable[tuple[str, Tensor]], expected: set[str], is_tied: bool
) -> Iterator[tuple[str, Tensor]]:
    """Yield weights, and the LM head of a tied model where they have none.

    On a CPU vLLM's LM head is a packed copy of the embedding, which loading the embedding alone leaves as it was.

    Args:
        expected: names that must come; vLLM would only warn.

    Raises:
        GeneratorError: one did not come.
    """
    seen = set()
    head = None
    for name, tensor in weights:
        seen.add(name)
        head = tensor if name.endswith(EMBEDDING) else head
        yield name, tensor
    if is_tied and HEAD not in seen and head is not None:
        yield HEAD, head
    if missing := sorted(expected - seen - ({HEAD} if is_tied else set())):
        raise GeneratorError(
            f"the new weights lack {len(missing)} of the {len(expected)} tensors of the model, such as {missing[0]}"
        )


def register() -> None:
    """Prepare a process that vLLM runs in: its entry point `vllm.general_plugins`, which vLLM loads in each of them."""
    from vllm.platforms import current_platform

    if os.environ.get(DIE_WITH_PARENT) and (parent := multiprocessing.parent_process()) is not None:
        die_with_parent(parent.pid)
    if current_platform.is_cpu():
        vllm_cpu_lora.install()
        vllm_cpu_sampling.install()
