"""VllmSession: vLLM's engine in this process, driven step by step. Everything here runs in one thread (vllm_thread.py).

What is not here: threads, futures and deadlines. The one idea: between two steps the engine stands still, so weights
are exchanged there, and running requests go on under the new ones with their KV cache computed anew.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surogate.config.parts_grpo import InferenceSpec
from surogate.errors import GeneratorError
from surogate.rl.generators.protocol import WeightUpdate
from surogate.rl.generators.vllm_arguments import (
    ENVIRONMENT,
    ModelShape,
    engine_arguments,
    engine_environment,
    token_versions,
    version_name,
)
from surogate.rl.generators.vllm_worker import register
from surogate.rl.types import Completion

ADAPTER_ID = 1
"""All versions of the adapter have vLLM's number 1, so that running requests take up a new one; the name tells them
apart, since cached prefixes are found by name."""


class VllmSession:
    """An engine that is being driven.

    Args:
        spec: of infer.yaml.
        model_dir: folder of the model.
    """

    def __init__(self, spec: InferenceSpec, model_dir: Path) -> None:
        self._is_lora_enabled = spec.enable_lora
        self._adapter_name = spec.adapter_name
        self._adapter: Any = None
        self._has_adapter: dict[str, bool] = {}
        self._base_version = self._adapter_version = 0
        self._is_asleep = False
        self.is_broken = False
        """Whether an exchange of all weights was cut short: what is left is neither the old policy nor the new one."""
        self._owns_group = not torch.distributed.is_initialized()
        if not self._owns_group and torch.distributed.get_world_size() > 1:
            raise GeneratorError(
                "an engine inside a trainer of several processes would wait for each of them: start a server instead"
            )
        for key, value in ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        os.environ.update(engine_environment(spec, ModelShape.read(model_dir)))
        if not torch.cuda.is_available():  # it remarks that Triton, which nothing uses here, has no CPU backend
            logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)
        with _kept_process_state():
            self._engine = _build(spec, model_dir)
        self._tell_version()

    # --- requests -----------------------------------------------------------------------------------------------------

    def add(self, request_id: str, prompt_ids: Sequence[int], arguments: Mapping[str, Any]) -> None:
        """Queue a request to the current weights."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(**arguments, output_kind=RequestOutputKind.FINAL_ONLY, flat_logprobs=True)
        prompt = {"prompt_token_ids": list(prompt_ids)}
        self._engine.add_request(request_id, prompt, params, lora_request=self._adapter)
        self._has_adapter[request_id] = self._adapter is not None

    def abort(self, request_ids: Sequence[str]) -> None:
        """Stop requests; unknown ones are ignored."""
        known = [request_id for request_id in request_ids if self._has_adapter.pop(request_id, None) is not None]
        self._engine.abort_request(known)

    @property
    def is_idle(self) -> bool:
        """Whether a step would have nothing to do."""
        return not self._engine.has_unfinished_requests()

    def step(self) -> Iterator[tuple[str, Completion | list[float]]]:
        """Sample one token of every running request, and yield those that end: a completion, or a prompt's scores."""
        for output in self._engine.step():
            if not output.finished or (has_adapter := self._has_adapter.pop(output.request_id, None)) is None:
                continue
            if output.prompt_logprobs is not None:
                yield output.request_id, _chosen(output.prompt_logprobs, len(output.prompt_token_ids))[1:]
            else:
                yield output.request_id, _completion(output.outputs[0], has_adapter)

    # --- weights ------------------------------------------------------------------------------------------------------

    def load(self, update: WeightUpdate, noise_seed: int) -> None:
        """Take up new weights; running requests go on with them."""
        if self._is_asleep:
            self.wake()
        if update.adapter_dir is not None:
            self._load_adapter(update.adapter_dir, update.version)
        elif update.tensors is not None:
            self._load_base(update.version, "load_merged", update.tensors())
        elif update.weights_dir is not None:
            self._load_base(update.version, "load_merged_files", str(update.weights_dir))
        else:
            raise GeneratorError(f"the weights of version {update.version} are neither an adapter nor merged weights")
        self._engine.collective_rpc("add_norm_noise", args=(update.norm_noise_sigma, noise_seed))
        self._tell_version()
        if not self._engine.reset_prefix_cache(reset_running_requests=True):
            raise GeneratorError("vLLM did not let go of what it computed with the old weights (its prefix cache)")

    def _load_adapter(self, folder: Path, version: int) -> None:
        from vllm.lora.request import LoRARequest

        if not self._is_lora_enabled:
            raise GeneratorError("this engine serves no adapters: set enable_lora, or send merged weights")
        name = f"{self._adapter_name}-{version}"
        # load_inplace is for this call only: a request that carries it reads the adapter again at every step
        self._engine.add_lora(LoRARequest(name, ADAPTER_ID, str(folder), load_inplace=True))
        self._adapter = LoRARequest(name, ADAPTER_ID, str(folder))
        self._adapter_version = version

    def _load_base(self, version: int, method: str, source: Any) -> None:
        if self._adapter is not None:
            raise GeneratorError("this engine serves an adapter already; it cannot go on with merged weights")
        self.is_broken = True
        self._engine.collective_rpc(method, args=(source,))
        self.is_broken = False
        self._base_version = version

    def _tell_version(self) -> None:
        name = version_name(self._base_version, self._adapter_version)
        self._engine.set_weight_version(name)
        if (answer := self._engine.get_weight_version()) != name:
            raise GeneratorError(f"vLLM was told weight version {name} and answers {answer}")

    # --- memory and end -----------------------------------------------------------------------------------------------

    def sleep(self) -> None:
        """Move the weights to the host and drop the KV cache; nothing on a CPU, where vLLM cannot."""
        if not self.is_idle:
            raise GeneratorError("the generator was put to sleep while it was generating")
        if torch.cuda.is_available():
            self._engine.sleep(level=1)
            self._is_asleep = True

    def wake(self) -> None:
        """Undo `sleep`."""
        if self._is_asleep:
            self._engine.wake_up()
            self._is_asleep = False

    def close(self) -> None:
        """Free the engine. The process group stays if it was there before."""
        from vllm.v1.engine import core

        original = getattr(core, _CLEANUP)
        if not self._owns_group:
            setattr(core, _CLEANUP, _destroy_own_groups)
        try:
            self._engine.engine_core.shutdown()
        finally:
            setattr(core, _CLEANUP, original)
        del self._engine
        gc.collect()


_CLEANUP = "cleanup_dist_env_and_memory"
"""What vLLM's engine calls at its end; it destroys the default process group, whoever made it."""


def _build(spec: InferenceSpec, model_dir: Path) -> Any:
    # of vLLM's import, with torch 2.13
    warnings.filterwarnings("ignore", r"`torch\.distributed\.reduce_op` is deprecated", FutureWarning)
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.llm_engine import LLMEngine

    register()
    has_gpu = not current_platform.is_cpu()
    arguments = engine_arguments(spec, model_dir, has_gpu=has_gpu)
    # without it a batch can be on its way while weights are exchanged, and its tokens would get the new version
    arguments.setdefault("async_scheduling", False)
    if has_gpu:
        arguments.setdefault("enable_sleep_mode", True)
    return LLMEngine.from_engine_args(EngineArgs(**arguments))


def _destroy_own_groups() -> None:
    """What vLLM's clean-up does, without destroying the process group that the trainer made."""
    from vllm.distributed import parallel_state

    parallel_state.destroy_model_parallel()
    if parallel_state._WORLD is not None:
        parallel_state._WORLD.destroy()
        parallel_state._WORLD = None


def _completion(output: Any, has_adapter: bool) -> Completion:
    token_ids = list(output.token_ids)
    if output.finish_reason not in ("stop", "length"):
        raise GeneratorError(f"vLLM ended a completion after {len(token_ids)} tokens with: {output.finish_reason}")
    return Completion(
        token_ids=token_ids,
        logprobs=_chosen(output.logprobs, len(token_ids)),
        versions=token_versions(output.weight_versions, len(token_ids), has_adapter=has_adapter),
        finish_reason=output.finish_reason,
    )


def _chosen(logprobs: Any, num_tokens: int) -> list[float]:
    """Return the log-probabilities of the tokens themselves from vLLM's FlatLogprobs; they are first at each position.

    The first position of a prompt has none; it gets 0.
    """
    starts, ends = logprobs.start_indices, logprobs.end_indices
    if len(starts) != num_tokens:
        raise GeneratorError(f"vLLM gave {len(starts)} log-probabilities for {num_tokens} tokens")
    return [float(logprobs.logprobs[i]) if i < end else 0.0 for i, end in zip(starts, ends, strict=True)]


@contextmanager
def _kept_process_state() -> Iterator[None]:
    """Leave the random states and torch's threads as they were: building an engine seeds everything anew, and replaces
    `torch.set_num_threads` by a function that does nothing."""
    set_num_threads: Callable[[int], None] = torch.set_num_threads
    num_threads = torch.get_num_threads()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads  # type: ignore[assignment]
        if torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.cuda.set_rng_state_all(cuda_states)
