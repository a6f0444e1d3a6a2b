"""The rest of the public contract for train.yaml, infer.yaml and orch.yaml: keys known by name and not honoured there.

Each comes with one sentence that says why and what to use instead. The one idea: a key in the wrong file is told the
right one.
"""

from __future__ import annotations

from surogate.config.flat import DataKeys
from surogate.config.flat_grpo import SCHEMAS_GRPO
from surogate.config.keys import keys_of
from surogate.config.not_yet import ALIASES, SYNONYMS, TRAINING_LATER, VALUES_NOT_YET, Contract, NotYet

_PROMPTS = "prompts come from environments, not from data sets. Remove it, and set env in orch.yaml."
_EPOCHS = "environments are not passed over in epochs. Set max_steps."
_EVALUATION = "evaluation is a matter of orch.yaml. Set eval.env and eval.interval there."
_TEACHER = "teacher models are planned for a later release. Remove it."
_RULER = "rewards by a judging model are planned for a later release. Remove it, and let an environment reward."

OF_ROWS = {
    **{name: NotYet(_PROMPTS, (None,)) for name in keys_of(DataKeys)},
    "datasets": NotYet(_PROMPTS, (None, [])),
    "validation_datasets": NotYet(_PROMPTS, (None, [])),
    "sample_packing": NotYet("rollouts are always packed. Remove it.", (None, True)),
    "padding_free": NotYet("rollouts are always packed. Remove it.", (None, True)),
    "num_epochs": NotYet(_EPOCHS, (None,)),
    "epoch_adjustment": NotYet(_EPOCHS, (None, False)),
    "early_stop": NotYet("a policy's loss says nothing of when to stop. Set max_steps.", (None, False)),
    "eval_steps": NotYet(_EVALUATION, (None,)),
    "eval_seed": NotYet(_EVALUATION, (None,)),
    "sample_prompts": NotYet("what a policy writes is in rollouts/ and evaluations/ anyway. Remove it.", (None, 0)),
    "sample_max_tokens": NotYet("what a policy writes is in rollouts/ and evaluations/ anyway. Remove it.", (None,)),
}
"""Keys of sft and pt that have no meaning without data sets."""

NOT_YET_GRPO: dict[str, dict[str, NotYet]] = {
    "train": {"loss.teacher_tau": NotYet(_TEACHER, (None, 0)), **OF_ROWS, **TRAINING_LATER},
    "infer": {},
    "orch": {
        "teacher_model": NotYet(_TEACHER, (None, {})),
        "teacher_model.*": NotYet(_TEACHER, (None,)),
        "ruler": NotYet(_RULER, (None, {}, False)),
        "ruler.*": NotYet(_RULER, (None, False)),
    },
}
"""For each file the keys, or patterns of keys, that are rejected by name."""

VALUES_NOT_YET_GRPO = {
    "transport_type": {"zmq": "rollouts over ZeroMQ are planned for a later release. Use filesystem."},
    "weight_broadcast_type": {"nccl": "weights over NCCL are planned for a later release. Use filesystem."},
}
"""Values of keys of train.yaml that are rejected by name."""

_NOT_HERE = {"num_train_epochs", "epochs", "packing"}

ALIASES_GRPO = {
    "train": {
        **{name: key for name, key in ALIASES.items() if name not in _NOT_HERE},
        "num_train_epochs": "max_steps",
        "epochs": "max_steps",
        "beta": "loss.kl_tau",
        "epsilon": "loss.clip_low and loss.clip_high",
        "loss_type": "loss.type",
    },
    "infer": {
        "base_model": "model",
        "model_name_or_path": "model",
        "tensor_parallel_size": "tp",
        "data_parallel_size": "dp",
        "kv_cache_memory_bytes": "kv_cache_gib",
        "sequence_len": "max_model_len",
    },
    "orch": {
        "sequence_len": "seq_len",
        "max_seq_length": "seq_len",
        "cutoff_len": "seq_len",
        "envs": "env",
        "environments": "env",
        "environment": "env",
        "group_size": "rollouts_per_example",
        "num_generations": "rollouts_per_example",
        "max_completion_length": "sampling.max_tokens",
        "temperature": "sampling.temperature",
        "max_tokens": "sampling.max_tokens",
        "base_url": "client.base_url",
        "save_steps": "ckpt.interval",
        "save_total_limit": "ckpt.keep_last",
    },
}
"""Names that other trainers use, for each file."""


def _keys_of_the_others(file: str) -> dict[str, str]:
    return {
        name: f"{other}.yaml"
        for other, schema in SCHEMAS_GRPO.items()
        for name in keys_of(schema)
        if other != file and name not in keys_of(SCHEMAS_GRPO[file])
    }


_ADVICE = {
    "train": "`surogate grpo --help` lists all keys.",
    "infer": "Arguments of vLLM itself stand under `vllm:`; `surogate grpo-infer --help` lists all keys.",
    "orch": "`surogate grpo --help` lists all keys.",
}

CONTRACTS_GRPO = {
    file: Contract(
        advice=_ADVICE[file],
        synonyms={name: key for name, key in SYNONYMS.items() if name != "padding_free"} if file == "train" else {},
        aliases=ALIASES_GRPO[file],
        later=NOT_YET_GRPO[file],
        values={**VALUES_NOT_YET, **VALUES_NOT_YET_GRPO} if file == "train" else {},
        elsewhere=_keys_of_the_others(file),
    )
    for file in SCHEMAS_GRPO
}
"""What each file may hold besides the keys of its schema."""
