"""From specs to a running service: environments, engine, orchestrator and evaluation put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from surogate.config.parts_grpo import EnvSpec, InferenceSpec, LinkSpec, OrchestratorSpec
from surogate.rl.environments.registry import build_environment
from surogate.rl.evaluation import Evaluation
from surogate.rl.feed import RolloutService
from surogate.rl.generators.protocol import Generator
from surogate.rl.orchestrator import Orchestrator

SERVER_LOG = "vllm.log"


def build_generator(
    inference: InferenceSpec, link: LinkSpec, model_dir: Path, folder: Path, seed: int, *, has_gpu: bool
) -> Generator:
    """Return the engine, not yet started: servers that run already, one that is started for this run, or one in here.

    Args:
        inference: of the engine; own_process where the trainer has several ranks, which an engine inside one of them
            would wait for.
        link: which of the three.
        model_dir: of the base.
        folder: of the run; gets the log of a server.
        seed: of sampling.
        has_gpu: it runs on a GPU.
    """
    if link.server_urls:
        from surogate.rl.generators.vllm_client import ServerVllm

        return ServerVllm(
            link.server_urls,
            seed=seed,
            timeout=inference.request_timeout,
            api_key_var=inference.api_key_var,
            adapter_name=inference.adapter_name,
        )
    if inference.own_process or link.server_gpus:
        from surogate.rl.generators.vllm_client import ServerVllm
        from surogate.rl.generators.vllm_server import VllmServer, usable_port

        folder.mkdir(parents=True, exist_ok=True)
        server = VllmServer(
            replace(inference, port=usable_port(inference.host, inference.port)),
            model_dir,
            has_gpu=has_gpu,
            log_path=folder / SERVER_LOG,
            visible_gpus=link.server_gpus or None,
        )
        return ServerVllm(
            servers=[server],
            seed=seed,
            timeout=inference.request_timeout,
            api_key_var=inference.api_key_var,
            adapter_name=inference.adapter_name,
        )
    from surogate.rl.generators.vllm_engine import InProcessVllm

    return InProcessVllm(inference, model_dir, seed=seed, timeout=inference.request_timeout)


def build_service(
    spec: OrchestratorSpec, environments: Sequence[EnvSpec], generator: Generator, tokenizer: Any, async_level: int
) -> RolloutService:
    """Return an orchestrator and its evaluation over an engine.

    Args:
        spec: sizes, sampling, what is left out.
        environments: to learn in; those of the evaluation are in spec.eval.
        generator: not yet started.
        tokenizer: the model's.
        async_level: policy versions that generation may be ahead of training.

    Raises:
        ConfigError: an environment is not known, or its arguments are wrong.
        DataError: an environment cannot read its prompts, or has none.
    """
    built = [build_environment(environment) for environment in environments]
    of_evaluation = [build_environment(environment) for environment in spec.eval.env]
    weights = [environment.weight for environment in environments]
    orchestrator = Orchestrator(spec, built, weights, generator, tokenizer, async_level)
    evaluation = Evaluation(spec, of_evaluation, generator, tokenizer)
    return RolloutService(orchestrator, evaluation)


def async_level(spec: OrchestratorSpec, link: LinkSpec, *, on_gpu: bool) -> int:
    """Return how many policy versions generation may be ahead; auto is 0 where one GPU sleeps between the two."""
    if spec.max_async_level != "auto":
        return spec.max_async_level
    shares_gpu = on_gpu and not (link.server_urls or link.server_gpus or link.feed == "folder")
    return 0 if shares_gpu else 1
