"""The rest of the public contract: keys and values that Surogate knows by name but does not honour today.

Each comes with one sentence that says why and what to use instead, and with the values that ask for nothing and are
therefore accepted: a key is honoured or rejected, never ignored. When a key lands it moves from here to flat.py. What
the files of `surogate grpo` know besides is in not_yet_grpo.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

SYNONYMS = {
    "torch_dtype": "model_dtype",
    "min_lr_ratio": "final_lr_fraction",
    "padding_free": "sample_packing",
}
"""Second names of the public contract; packing is what makes a batch free of padding."""

ALIASES = {
    "base_model": "model",
    "model_name_or_path": "model",
    "cutoff_len": "sequence_len",
    "max_seq_length": "sequence_len",
    "seq_len": "sequence_len",
    "micro_batch_size": "per_device_train_batch_size",
    "num_train_epochs": "num_epochs",
    "epochs": "num_epochs",
    "lr": "learning_rate",
    "lora_r": "lora_rank",
    "load_in_4bit": "qlora_bnb",
    "packing": "sample_packing",
    "gradient_checkpointing": "recompute",
    "bf16": "recipe: bf16",
}
"""Names that other trainers use: they get a hint, never a silent acceptance."""


@dataclass(frozen=True)
class NotYet:
    """Why a key or value is rejected, and what to use instead."""

    sentence: str
    inactive: tuple[Any, ...] = (None, False)
    """Values that ask for nothing."""

    def accepts(self, value: Any) -> bool:
        """Whether the value asks for nothing. `1` is not `true` here."""
        return any(value == ok and isinstance(value, bool) == isinstance(ok, bool) for ok in self.inactive)


_COMPILED = "CUDA graphs and torch.compile are not there yet. Remove the key, or set it to false."
_LATER = "this is planned for a later release. Remove the key."
_GRPO = "it belongs to `surogate grpo`. Remove it."


def _not_yet(sentence: str, **inactive: object) -> dict[str, NotYet]:
    return {key: NotYet(sentence, (None, value)) for key, value in inactive.items()}


NOT_YET: dict[str, NotYet] = {
    **_not_yet(_COMPILED, use_cuda_graphs=False, torch_compile=False),
    "padding_side": NotYet(
        "padding is never attended to here, so its side changes nothing. Remove the key.", (None, "right")
    ),
    **_not_yet(_LATER, train_router=False, long_context=False, sequence_chunks=1, attn_bwd_chunks=1),
}
"""Keys of the public contract that a later issue brings."""

_LATER_PATTERNS = {
    pattern: NotYet(_LATER, (None, False, 0, 1, [], {}, "none"))
    for pattern in [
        "cpu_training",
        "offload_*",
        "persistent_quants",
        "use_zero_copy",
        "shard_*",
        "memcpy_*",
        "parallelism",
        "ep_*",
        "distillation",
        "distillation.*",
        "train_vision",
        "aim_*",
    ]
}

_OF_GRPO = {
    pattern: NotYet(_GRPO, (None,))
    for pattern in [
        "loss",
        "loss.*",
        "noise_scheduler",
        "noise_scheduler.*",
        "max_async_level",
        "weight_sync",
        "transport_type",
        "weight_broadcast_type",
    ]
}

NOT_YET_PATTERNS: dict[str, NotYet] = {**_LATER_PATTERNS, **_OF_GRPO}
"""The same for families of keys; and keys of reinforcement learning, which data sets have no use for."""

_BY_DATA = (
    "initialisation from the training data is not there yet. Use true, gaussian, pissa, pissa_niter_16, olora or "
    "orthogonal."
)

VALUES_NOT_YET: dict[str, dict[Any, str]] = {
    "init_lora_weights": {
        "eva": _BY_DATA,
        "corda": _BY_DATA,
        "loftq": "it is planned for a later release. Use true, gaussian, pissa, olora or orthogonal.",
    },
    "datasets.type": {
        "preference": "preference pairs are planned for a later release. Use text, instruction, conversation or auto.",
    },
}
"""Values, or patterns of values, of active keys that a later issue brings."""

DATASET_FIELDS = {
    "text": ("text_field",),
    "instruction": [
        "instruction_field",
        "input_field",
        "output_field",
        "system_prompt_type",
        "system_prompt_field",
        "system_prompt",
        "prompt_format",
        "prompt_format_no_input",
    ],
    "conversation": [
        "messages_field",
        "system_field",
        "tools_field",
        "message_property_mappings",
        "completion_field",
    ],
    "preference": ("prompt_field", "chosen_field", "rejected_field"),
}
"""Which keys of a dataset belong to which type."""


@dataclass(frozen=True)
class Contract:
    """What a file of the user's may hold besides the keys of its schema.

    Attributes:
        advice: what to say of a key that resembles none.
        synonyms: second names of keys.
        aliases: names from elsewhere, and what they are called here.
        later: keys, or patterns of keys, that are rejected by name.
        values: values, or patterns of values, of active keys that are rejected by name.
        elsewhere: keys of the other files of the same run, and the file that they belong in.
    """

    advice: str
    synonyms: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    later: dict[str, NotYet] = field(default_factory=dict)
    values: dict[str, dict[Any, str]] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)

    def not_yet(self, key: str, value: Any) -> str | None:
        """Return the sentence that rejects a known key, "" where its value asks for nothing.

        Returns:
            None where the key is not one of those.
        """
        matching = (rule for glob, rule in self.later.items() if fnmatchcase(key, glob))
        found = self.later.get(key) or next(matching, None)
        if found is None:
            return None
        return "" if found.accepts(value) else found.sentence

    def value_not_yet(self, key: str, value: Any) -> str | None:
        """Return the sentence that rejects a value of an active key, or None."""
        for rejected, sentence in self.values.get(key, {}).items():
            if isinstance(value, str) and isinstance(rejected, str):
                if fnmatchcase(value.replace("-", "_"), rejected):
                    return sentence
            elif value is rejected:
                return sentence
        return None


ROWS = Contract(
    advice="`surogate sft --help` lists all keys.",
    synonyms=SYNONYMS,
    aliases=ALIASES,
    later={**NOT_YET, **NOT_YET_PATTERNS},
    values={**VALUES_NOT_YET, "validation_datasets.type": VALUES_NOT_YET["datasets.type"]},
)
"""What a configuration for training on rows may hold besides its keys."""

TRAINING_LATER = {**NOT_YET, **_LATER_PATTERNS}
"""What no training verb honours yet."""
