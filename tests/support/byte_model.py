"""A model of 95 thousand parameters over bytes: small enough for a real engine in a test, with a real tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from surogate.rl.types import Completion

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCAB = 320
"""3 special tokens and 256 bytes, rounded up to a multiple of 64."""
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CLASSES: dict[str, Any] = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, three special tokens before them, a chat template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*SPECIAL, *letters])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    end_of_text, start, end = SPECIAL
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=start, eos_token=end, pad_token=end_of_text)
    fast.chat_template = TEMPLATE
    return fast


def save_byte_model(
    folder: Path, family: str = "qwen3", *, initializer_range: float = 0.2, seed: int = 0, **changes: Any
) -> Path:
    """Write a random float32 model and its tokenizer.

    Args:
        family: qwen3 or llama.
        initializer_range: 0.02 barely learns through an adapter; 0.2 does.
        changes: of its configuration.
    """
    config_class, model_class = CLASSES[family]
    tokenizer = byte_tokenizer()
    values: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "initializer_range": initializer_range,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model_class(config_class(**{**values, **changes})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def token_logprobs(model: Any, prompt: list[int], completion: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probability of each token of a completion by transformers: the reference for an engine's."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits.float() / temperature, -1)[torch.arange(len(completion)), torch.tensor(completion)]


def distance(model: Any, prompt: list[int], completion: Completion, temperature: float = 1.0) -> torch.Tensor:
    """How far each token's log-probability from an engine is from that by transformers."""
    reference = token_logprobs(model, prompt, completion.token_ids, temperature)
    return (torch.tensor(completion.logprobs) - reference).abs()


def largest_distance(model: Any, prompt: list[int], completions: list[Completion], temperature: float = 1.0) -> float:
    """The largest distance of all tokens of some completions."""
    return max(distance(model, prompt, completion, temperature).max().item() for completion in completions)


def random_adapter(model: Any, seed: int, std: float = 0.1, rank: int = 8) -> PeftModel:
    """Wrap a model with an adapter on all linear layers whose B is not zero."""
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    randomize_adapter_(adapted, seed, std)
    return adapted


def randomize_adapter_(model: PeftModel, seed: int, std: float = 0.1) -> None:
    """Draw B anew."""
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=rng) * std


def merged_weights(model: PeftModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights with the adapter in them, in the names of the checkpoint; not the head of a tied model."""
    prefix = "base_model.model."
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            weight = module.base_layer.weight + module.get_delta_weight("default")
            yield f"{name.removeprefix(prefix)}.weight", weight.detach()
    for name, parameter in model.named_parameters():
        if "lora_" not in name and ".base_layer." not in name:
            yield name.removeprefix(prefix), parameter.detach()
