"""Documents of a packed row are isolated, whatever the kernel, window or grouping of heads."""

from __future__ import annotations

import pytest
import torch
from support.tiny import random_rows, tiny_config
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    Llama4TextConfig,
    LlamaForCausalLM,
    MambaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen3Config,
)

from surogate.batches import MicroBatch, PackedRow, TokenRow
from surogate.errors import ModelError
from surogate.models import attention, isolation
from surogate.models.hidden import Head, forward_hidden, head_error

CPU = torch.device("cpu")
LOGIT_TOLERANCE = 1e-4

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def build(config: PreTrainedConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def logits_of(model: torch.nn.Module, packs: list[list[TokenRow]]) -> torch.Tensor:
    batch = MicroBatch.collate([PackedRow.from_rows(rows) for rows in packs], pad_token_id=0)
    with torch.no_grad():
        return Head.of(model).logits(forward_hidden(model, batch))


@pytest.mark.parametrize("name", [attention.ATTENTION, "sdpa", "eager"])
@pytest.mark.parametrize("window", [None, 6])
def test_logits_of_a_packed_document_equal_those_of_the_document_alone(name: str, window: int | None) -> None:
    config = MistralConfig(**SMALL, sliding_window=window) if window else tiny_config()
    model = build(config)
    attention.register()
    model.set_attn_implementation(name)
    rows = [TokenRow(row.input_ids % 64, row.loss_mask) for row in random_rows(5, seed=3)]
    one = TokenRow(rows[0].input_ids[:1], rows[0].loss_mask[:1])  # a document of one token
    packed = logits_of(model, [[rows[0], one, rows[1]], [rows[2]], [rows[3], rows[4]]])
    model.set_attn_implementation("eager")
    offsets = {0: (0, 0), 1: (0, len(rows[0]) + 1), 2: (1, 0), 3: (2, 0), 4: (2, len(rows[3]))}
    for i, (row, start) in offsets.items():
        alone = logits_of(model, [[rows[i]]])[0]
        torch.testing.assert_close(
            packed[row, start : start + len(rows[i])], alone, atol=LOGIT_TOLERANCE, rtol=LOGIT_TOLERANCE
        )


def test_auto_takes_document_attention_where_it_fits() -> None:
    model = LlamaForCausalLM(tiny_config()).eval()
    assert isolation.choose(model, "auto", CPU) == attention.ATTENTION


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SMALL, attn_logit_softcapping=0.5, sliding_window=4, query_pre_attn_scalar=1),
        GptOssConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1, sliding_window=4, initializer_range=0.2),
        Gemma3TextConfig(**SMALL, sliding_window=4),
        Qwen3Config(**SMALL),
        PhiConfig(**{**SMALL, "num_key_value_heads": 4}),
        GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2),
    ],
    ids=lambda config: config.model_type,
)
def test_document_attention_computes_soft_caps_sinks_and_windows_as_the_models_own_code(
    config: PreTrainedConfig,
) -> None:
    model = build(config)
    assert isolation.choose(model, "auto", CPU) == attention.ATTENTION
    rows = [TokenRow(row.input_ids % 64, row.loss_mask) for row in random_rows(3, seed=4, low=9, high=14)]
    packed = logits_of(model, [rows])[0]
    model.set_attn_implementation("eager")
    alone = torch.cat([logits_of(model, [[row]])[0] for row in rows])
    torch.testing.assert_close(packed, alone, atol=LOGIT_TOLERANCE, rtol=LOGIT_TOLERANCE)


def test_an_implementation_that_leaks_for_this_model_is_refused_when_asked_for() -> None:
    """transformers 5.19 builds gpt-oss' masks without position_ids: packed documents see each other."""
    model = build(GptOssConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1, initializer_range=0.2))
    with pytest.raises(ModelError, match="cannot be kept apart"):
        isolation.choose(model, "eager", CPU)


def test_a_model_that_leaks_between_documents_is_refused() -> None:
    model = build(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2))
    original = model.base_model.forward

    def leaky(*args: object, **kwargs: object) -> object:
        output = original(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state.cumsum(1)
        return output

    model.base_model.forward = leaky
    with pytest.raises(ModelError, match="cannot be kept apart"):
        isolation.choose(model, "auto", CPU)


def test_an_implementation_that_fails_leaves_the_model_training() -> None:
    model = build(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)).train()
    original = model.base_model.forward

    def fails_on_its_own_documents(*args: object, **kwargs: object) -> object:
        if model.config._attn_implementation == attention.ATTENTION:
            raise ValueError("no. A long story.")
        return original(*args, **kwargs)

    model.base_model.forward = fails_on_its_own_documents
    assert isolation.choose(model, "auto", CPU) == "sdpa"
    assert model.training and model.base_model.h[0].training
    with pytest.raises(ModelError, match=r"\(surogate_documents: no\)"):
        isolation.choose(model, "varlen", CPU)


def test_a_recurrent_model_trains_where_each_document_has_a_row_of_its_own() -> None:
    model = build(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.5))
    with pytest.raises(ModelError, match="sample_packing: false"):
        isolation.choose(model, "auto", CPU)
    isolation.choose(model, "auto", CPU, packed=False)


def test_chunked_attention_is_refused_in_packed_rows_where_chunks_are_the_rows() -> None:
    """Its chunks of 8,192 tokens are longer than any probe."""
    model = build(Llama4TextConfig(**SMALL, num_local_experts=2, intermediate_size_mlp=32))
    with pytest.raises(ModelError, match="chunks of attention"):
        isolation.choose(model, "auto", CPU)
    assert isolation.choose(model, "auto", CPU, packed=False) == "sdpa"


def test_a_window_that_only_the_mask_knows_keeps_document_attention_away() -> None:
    """Qwen2-MoE in transformers 5.19; the window is longer than any probe."""
    layers = ["sliding_attention", "full_attention"]
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    model = build(Qwen2MoeConfig(**SMALL, **experts, use_sliding_window=True, sliding_window=4096, layer_types=layers))
    assert isolation.choose(model, "auto", CPU) == "sdpa"


def test_the_head_knows_soft_caps_and_scales() -> None:
    model = build(Gemma2Config(**SMALL, final_logit_softcapping=3.0))
    model.get_output_embeddings().weight.data.mul_(50)
    isolation.choose(model, "auto", CPU)
    assert Head.of(model).softcap == 3.0
    assert head_error(model, CPU) < 1e-6


def test_without_boundaries_document_attention_refuses_instead_of_mixing_documents() -> None:
    model = LlamaForCausalLM(tiny_config()).eval()
    attention.register()
    model.set_attn_implementation(attention.ATTENTION)
    with pytest.raises(attention.UnsupportedAttention, match="boundaries"):
        model(torch.arange(4)[None])
