"""Freezing by name: what stays, what is tied to it, and names that match nothing."""

from __future__ import annotations

import logging

import pytest
import torch
from support.tiny import tiny_config
from transformers import LlamaForCausalLM

from surogate.errors import ModelError
from surogate.models.freeze import freeze_


def model(**changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(**changes))


def frozen(net: LlamaForCausalLM) -> set[str]:
    return {name for name, parameter in net.named_parameters() if not parameter.requires_grad}


def test_a_module_is_found_by_the_end_of_its_name_or_the_whole():
    net = model()
    freeze_(net, ["layers.0.mlp", "model.norm"])
    mlp = {f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    assert frozen(net) == {*mlp, "model.norm.weight"}


def test_every_module_of_that_name_is_frozen_but_no_longer_name():
    net = model()
    freeze_(net, ["q_proj"])
    assert frozen(net) == {f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)}
    with pytest.raises(ModelError, match="no module named proj"):
        freeze_(net, ["proj"])


@pytest.mark.parametrize(("name", "other"), [("lm_head", "model.embed_tokens"), ("embed_tokens", "lm_head")])
def test_tied_weights_freeze_together_and_it_is_said(name, other, caplog):
    net = model(tie_word_embeddings=True)
    with caplog.at_level(logging.INFO, "surogate"):
        freeze_(net, [name])
    assert frozen(net) == {"model.embed_tokens.weight"}
    assert f"{name} shares its weight with {other}" in caplog.text


def test_untied_weights_freeze_apart_and_nothing_is_said(caplog):
    net = model(tie_word_embeddings=False)
    with caplog.at_level(logging.INFO, "surogate"):
        freeze_(net, ["lm_head"])
    assert frozen(net) == {"lm_head.weight"}
    assert not caplog.text


def test_a_name_that_matches_nothing_is_told_what_there_is():
    with pytest.raises(ModelError, match=r"no module named embeding\. It has: .*model\.embed_tokens.*q_proj"):
        freeze_(model(), ["embeding"])


def test_the_embeddings_are_found_whatever_their_family_calls_them():
    net = model(tie_word_embeddings=False)
    freeze_(net, ["embeddings"])
    assert frozen(net) == {"model.embed_tokens.weight"}


def test_freezing_everything_is_refused():
    with pytest.raises(ModelError, match="leaves nothing to train"):
        freeze_(model(), ["model", "lm_head"])
