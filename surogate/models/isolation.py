"""Choosing an attention implementation that keeps packed documents apart.

The one idea: the choice is *probed*, not listed. A candidate is taken only if, on this model and device, a packed
document comes out as the model's own eager code gives it alone. (In transformers 5.19 gpt-oss, for one, builds its
masks without position_ids, so that packed documents leak into each other under every implementation but ours.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surogate.batches import MicroBatch, PackedRow, TokenRow
from surogate.errors import ModelError
from surogate.models import attention
from surogate.models.attention import ATTENTION
from surogate.models.hidden import base_model, forward_hidden
from surogate.quant.gemm import plain_products

_CANDIDATES = {
    "auto": (ATTENTION, "flex_attention", "sdpa", "eager"),
    "auto on a CPU": (ATTENTION, "sdpa", "eager"),  # compiling flex attention there takes half a minute
    "varlen": (ATTENTION,),
    "flex": ("flex_attention",),
    "sdpa": ("sdpa",),
    "eager": ("eager",),
}

ISOLATION_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of a packed document's hidden states from its own alone, relative to their largest value."""


_FAILURES = (ModelError, ValueError, ImportError, RuntimeError, KeyError, AttributeError, TypeError)
"""How the code of a model says that it cannot run this way: each in its own words."""


def choose(model: Any, asked: str, device: torch.device, *, packed: bool = True) -> str:
    """Set the first attention implementation that is right and isolates documents on this model; return its name.

    Args:
        model: a transformers model (or a PEFT model of one), on its device.
        asked: `attn_implementation` of the configuration.
        device: where the model is.
        packed: whether documents share rows. Where each has a row of its own, models that know no boundaries between
            documents (recurrent ones, ALiBi) qualify too.

    Raises:
        ModelError: no candidate qualifies.
    """
    attention.register()
    reasons = []
    try:
        probe = _Probe(model, device, packed)
    except _FAILURES as problem:
        raise ModelError(f"This model cannot run on the rows of a batch: {_first_sentence(problem)}") from problem
    for name in _CANDIDATES["auto on a CPU" if asked == "auto" and device.type == "cpu" else asked]:
        reason = probe.why_not(name)
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    trouble = "packed documents cannot be kept apart" if packed else "documents cannot be kept apart from padding"
    advice = " With sample_packing: false each document has a row of its own." if packed else ""
    raise ModelError(f"attn_implementation: {asked}: {trouble} in this model ({'; '.join(reasons)}).{advice}")


class _Probe:
    """Compares a document's hidden states next to another document with those alone, by the model's own eager code."""

    def __init__(self, model: Any, device: torch.device, packed: bool) -> None:
        # Ids spread over the vocabulary, so that leaking attention shows.
        vocab_size = model.get_input_embeddings().num_embeddings
        ids = (torch.arange(1, 13) * 7919 % vocab_size).numpy().astype("int32")
        self.model, self.device, self.packed = model, device, packed
        self.dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        self.rows = [TokenRow(part, part > -1) for part in (ids[:7], ids[7:])]
        # A document in a packed row comes after others; one in a row of its own only comes before padding.
        self.place = slice(7, 12) if packed else slice(0, 7)
        model.set_attn_implementation("eager")
        self.expected = self._hidden([self.rows[1 if packed else 0]])
        if not self.expected.isfinite().all():
            raise ModelError(
                "The model's outputs are not numbers, so one of its weights is broken or its dtype too narrow."
            )

    def why_not(self, name: str) -> str | None:
        """Set an implementation and say why it does not qualify; None where it does."""
        config = base_model(self.model).config
        try:
            self.model.set_attn_implementation(name)
            if config._attn_implementation != name:
                return "the model's code has an attention of its own"
            if self.packed and "chunked_attention" in (getattr(config.get_text_config(), "layer_types", None) or []):
                return "the model cuts a row into chunks of attention, not each document"
            error = self._error()
        except _FAILURES as problem:
            return _first_sentence(problem)
        if error <= ISOLATION_TOLERANCE[self.dtype]:
            return None
        return f"a document differs from the same document alone by {error:.1e}"

    def _error(self) -> float:
        """Largest difference, relative to the largest value."""
        got = self._hidden(self.rows)[self.place]
        return ((got - self.expected).abs().max() / self.expected.abs().max().clamp_min(1e-12)).item()

    @torch.no_grad()
    def _hidden(self, rows: list[TokenRow]) -> Tensor:
        was_training = self.model.training
        self.model.eval()
        batch = MicroBatch.collate([PackedRow.from_rows(rows)], pad_token_id=0).to(self.device)
        try:
            with plain_products():  # a recipe's scales of a tensor depend on all documents in it
                return forward_hidden(self.model, batch)[0].float()
        finally:
            self.model.train(was_training)


def _first_sentence(problem: Exception) -> str:
    text = str(problem).strip()
    return text.splitlines()[0].split(". ")[0].rstrip(".") if text else type(problem).__name__
