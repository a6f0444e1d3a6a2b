"""`surogate grpo-orch`: the orchestrator in a process of its own, between vLLM servers and a trainer elsewhere."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

from surogate.config.flat_grpo import OrchConfig
from surogate.config.parts_grpo import LinkSpec, OrchestratorSpec
from surogate.config.read import read_config
from surogate.errors import ConfigError
from surogate.rl.environments.registry import check_environments

log = logging.getLogger(__name__)

TRANSPORT_DIR = "transport"


def main(argv: list[str]) -> int:
    """Answer a trainer, and the next one where it dies, until one says that the run is over."""
    if not argv or argv[0].startswith("-"):
        raise ConfigError("Name the configuration first: surogate grpo-orch orch.yaml [--key value ...]")
    config: OrchConfig = read_config("grpo-orch", argv[0], argv[1:]).config
    check_environments([*config.env, *config.eval.env])
    return asyncio.run(_serve(config))


async def _serve(config: OrchConfig) -> int:
    from surogate.data.tokenizers import load_tokenizer
    from surogate.rl.assembly import async_level, build_service
    from surogate.rl.generators.vllm_client import ServerVllm
    from surogate.rl.rendering import check_template_options, rendering
    from surogate.rl.transport import FolderServer, service_handlers

    spec = OrchestratorSpec(**{field.name: getattr(config, field.name) for field in fields(OrchestratorSpec)})
    link, client = LinkSpec(server_urls=list(config.client.base_url)), config.client
    generator = ServerVllm(
        link.server_urls,
        seed=spec.seed,
        timeout=client.timeout,
        api_key_var=client.api_key_var,
        adapter_name=config.model.lora_adapter,
    )
    level = async_level(spec, link, on_gpu=False)
    tokenizer = load_tokenizer(str(config.model.tokenizer or config.model.name), config.model.trust_remote_code)
    check_template_options(tokenizer, spec.sampling.chat_template_kwargs)
    service = build_service(spec, config.env, generator, tokenizer, level)

    async def hello(ledger: dict[str, Any] | None) -> dict[str, Any]:
        await service.reset(ledger)
        lengths = {"seq_len": spec.seq_len, "max_tokens": spec.sampling.max_tokens}
        facts = {"max_steps": spec.max_steps, "async_level": level, "base_url": link.server_urls}
        options = spec.sampling.chat_template_kwargs
        return {
            **lengths,
            **facts,
            "chat_template_kwargs": options,
            "rendering": rendering(tokenizer, options),
        }

    folder = Path(str(config.output_dir)) / TRANSPORT_DIR
    try:
        await service.start()
        log.info("Waiting for a trainer at %s.", folder)
        await FolderServer(folder, service_handlers(service), hello).serve()
    finally:
        await service.close()
    return 0
