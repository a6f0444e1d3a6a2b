"""`surogate grpo-infer`: a vLLM server for `surogate grpo` and `grpo-orch`, in the foreground until it is stopped."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path

from surogate.config.parts_grpo import InferenceSpec
from surogate.config.read import read_config
from surogate.errors import ConfigError

log = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Serve the base model, and the adapters that a trainer will send."""
    if not argv or argv[0].startswith("-"):
        raise ConfigError("Name the configuration first: surogate grpo-infer infer.yaml [--key value ...]")
    resolved = read_config("grpo-infer", argv[0], argv[1:])
    spec = InferenceSpec(**asdict(resolved.config))
    from surogate.rl.generators.checks import require_vllm
    from surogate.rl.generators.vllm_server import VllmServer, check_port

    require_vllm()
    check_port(spec.host, spec.port)
    import torch

    has_gpu = torch.cuda.is_available()
    if (wanted := spec.tp * spec.dp) > max(1, torch.cuda.device_count()):
        raise ConfigError(
            f"tp {spec.tp} x dp {spec.dp} needs {wanted} GPUs, and this machine has {torch.cuda.device_count()}."
        )
    folder, dtype = served_folder(spec.model, None if spec.dtype == "auto" else spec.dtype, spec.trust_remote_code)
    server = VllmServer(replace(spec, dtype=dtype), Path(folder), has_gpu=has_gpu)  # type: ignore[arg-type]
    log.info("Serving %s at %s; stop with Ctrl-C.", spec.model, server.url)
    return server.serve()


def served_folder(source: str, dtype: str | None, trust_remote_code: bool) -> tuple[str, str]:
    """Return a folder that vLLM can load a model from, and the dtype to load it in; a GGUF file is written out, once.

    Args:
        source: hub id, local folder, `.gguf` file or `pkg://package/file`.
        dtype: to load it in; None = as the trainer would on this machine.
        trust_remote_code: run code that comes with a hub repository.

    Raises:
        ModelError: there is no such model.
    """
    import torch

    from surogate.config.parts import ModelSpec
    from surogate.data.cache_folder import cache_dir
    from surogate.data.tokenizers import load_tokenizer
    from surogate.models.dtypes import weights_dtype
    from surogate.models.load import load_config, load_model
    from surogate.models.serving import export_base
    from surogate.models.source import ModelSource

    found = ModelSource.of(source).downloaded()
    spec = ModelSpec(source=source, dtype=dtype, trust_remote_code=trust_remote_code)  # type: ignore[arg-type]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = str(weights_dtype(spec.dtype, getattr(load_config(spec), "dtype", None), device)).removeprefix("torch.")
    if found.gguf_file is None:
        return found.folder, chosen
    folder = cache_dir() / "served" / f"{found.fingerprint()}-{chosen}"
    model = load_model(spec, device)
    marker = {"model": found.fingerprint(), "dtype": chosen}
    return str(export_base(model, folder, load_tokenizer(source, trust_remote_code), marker)), chosen
