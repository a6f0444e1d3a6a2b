"""The flat keys of `surogate grpo`: of train.yaml, infer.yaml and orch.yaml.

train.yaml has the keys of flat.py without those of datasets, whose place environments take. What one file leaves out
another one may give (settle.py), and what the files say together is checked in cross_check.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jsonargparse.typing import NonNegativeInt, NotEmptyStr, PositiveFloat, PositiveInt

from surogate.config.bounded import PartFraction, StepLimit
from surogate.config.flat import (
    AdapterKeys,
    ClusterKeys,
    MachineKeys,
    ModelKeys,
    OptimisationKeys,
    QuantKeys,
    RecipeKeys,
    RunKeys,
    TrainerConfig,
)
from surogate.config.parts_grpo import EngineKeys, EnvSpec, FilterSpec, LossSpec, NoiseSpec, RolloutKeys


@dataclass(frozen=True, kw_only=True)
class PolicyKeys:
    """The policy's loss, and how its weights reach the generator."""

    loss: LossSpec = field(default_factory=LossSpec)
    """The policy loss."""
    noise_scheduler: NoiseSpec = field(default_factory=NoiseSpec)
    """Noise on the generator's weights."""
    max_async_level: NonNegativeInt | Literal["auto"] = "auto"
    """Optimizer steps that generation may run ahead of training, 0 = strictly on-policy; auto: 0 on one shared device
    that sleeps, else 1."""
    weight_sync: Literal["auto", "adapter", "full"] = "auto"
    """What goes to the generator after a step: the adapter, or the weights with the adapter merged in (full); auto: the
    adapter on a GPU or with a quantised base, full on a CPU and where vLLM cannot serve the adapter."""
    transport_type: Literal["filesystem"] = "filesystem"
    """How rollouts reach a trainer in another process: files in output_dir."""
    weight_broadcast_type: Literal["filesystem"] = "filesystem"
    """How weights reach a generator in another process: files in output_dir."""


@dataclass(frozen=True, kw_only=True)
class GrpoConfig(PolicyKeys, TrainerConfig):
    """Every key of train.yaml."""

    verb: ClassVar[str] = "grpo"
    max_steps: StepLimit = -1
    """Optimizer steps of the whole run. Needed here or in orch.yaml."""
    train_seed: NonNegativeInt = 1234
    """Seed of initialisation, dropout, sampling and the order of prompts."""
    lora: bool = True
    """Train an adapter on the frozen base; reinforcement learning knows nothing else."""
    lora_dropout: PartFraction = 0.0
    """Dropout in front of the adapter; only 0, so that the trainer's probabilities are those of the rollouts."""
    from_scratch: bool = False
    """Start from random weights; refused, because a reward can only improve a model that writes."""
    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches that a step is cut into at least; its rollouts come from orch.yaml's batch_size."""


@dataclass(frozen=True, kw_only=True)
class InferConfig(EngineKeys):
    """Every key of infer.yaml."""

    verb: ClassVar[str] = "grpo-infer"


@dataclass(frozen=True, kw_only=True)
class PolicyNames:
    """Which policy the servers are asked for."""

    name: NotEmptyStr | None = None
    """Hub id, local folder or `.gguf` file. Default: train.yaml's model, and no other can be right."""
    lora_adapter: NotEmptyStr = "policy"
    """How adapters are called in the engine; the version follows."""
    tokenizer: NotEmptyStr | None = None
    """Folder, file or hub id of the tokenizer that writes prompts. Default: train.yaml's, else the model's own."""
    trust_remote_code: bool = False
    """Run code that comes with a hub repository; also where train.yaml or infer.yaml says so."""


@dataclass(frozen=True, kw_only=True)
class ClientKeys:
    """Servers that generate, started with `surogate grpo-infer`."""

    base_url: list[str] = field(default_factory=list)
    """Address of the server, or a list of several, such as `http://10.0.0.2:8000`. Default: none, the engine then runs
    inside the trainer."""
    timeout: PositiveFloat = 1200.0
    """Seconds after which a request to a server counts as lost."""
    api_key_var: NotEmptyStr | None = None
    """Environment variable that holds the servers' API key."""


@dataclass(frozen=True, kw_only=True)
class SavingKeys:
    """Checkpoints, where train.yaml does not speak of them."""

    interval: NonNegativeInt | None = None
    """Optimizer steps between checkpoints. Default: train.yaml's save_steps."""
    keep_last: PositiveInt | None = None
    """Checkpoints to keep. Default: train.yaml's save_total_limit."""


@dataclass(frozen=True, kw_only=True)
class OrchRunKeys:
    """The environments, and what train.yaml may say instead."""

    env: list[EnvSpec]
    """Environments to learn in; see the keys of an environment."""
    model: PolicyNames = field(default_factory=PolicyNames)
    """Which policy the servers are asked for."""
    seq_len: PositiveInt | None = None
    """Most tokens of a prompt and its completion together. Default: train.yaml's sequence_len."""
    max_steps: PositiveInt | None = None
    """Optimizer steps of the whole run. Needed here or in train.yaml."""
    max_async_level: NonNegativeInt | Literal["auto"] = "auto"
    """As in train.yaml: optimizer steps that generation may run ahead of training."""
    seed: NonNegativeInt | None = None
    """Of the order of prompts and of sampling. Default: train.yaml's train_seed."""
    output_dir: NotEmptyStr | None = None
    """Folder of the run. Default: train.yaml's."""
    ckpt: SavingKeys = field(default_factory=SavingKeys)
    """Checkpoints, where train.yaml does not speak of them."""
    report_to: list[Literal["wandb", "tensorboard"]] = field(default_factory=list)
    """Where metrics go. Default: as in train.yaml."""
    client: ClientKeys = field(default_factory=ClientKeys)
    """Servers that generate."""


@dataclass(frozen=True, kw_only=True)
class OrchConfig(RolloutKeys, OrchRunKeys):
    """Every key of orch.yaml."""

    verb: ClassVar[str] = "grpo-orch"


GROUPS_GRPO: dict[str, dict[str, type]] = {
    "train": {
        "Policy": PolicyKeys,
        "Run": RunKeys,
        "Model": ModelKeys,
        "Adapter": AdapterKeys,
        "Quantised base": QuantKeys,
        "Recipe": RecipeKeys,
        "Optimisation": OptimisationKeys,
        "Machine and reporting": MachineKeys,
        "Cluster": ClusterKeys,
    },
    "infer": {"Engine": EngineKeys},
    "orch": {"Environments and run": OrchRunKeys, "Rollouts": RolloutKeys},
}
"""The groups of each file in the order of the manual."""

ENTRIES_GRPO: dict[str, type] = {"An environment": EnvSpec, "A filter": FilterSpec}
"""What stands in the lists of orch.yaml."""

SCHEMAS_GRPO: dict[str, type] = {"train": GrpoConfig, "infer": InferConfig, "orch": OrchConfig}
"""The flat schema of each file."""
