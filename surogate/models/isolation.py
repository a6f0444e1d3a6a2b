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
from surogate.models.hidden import forward_hidden

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


def choose(model: Any, asked: str, device: torch.device) -> str:
    """Set the first attention implementation that is right and isolates documents on this model; return its name.

    Args:
        model: a transformers model (or a PEFT model of one), on its device.
        asked: `attn_implementation` of the configuration.
        device: where the model is.

    Raises:
        ModelError: no candidate qualifies.
    """
    attention.register()
    probe = _Probe(model, device)
    reasons = []
    for name in _CANDIDATES["auto on a CPU" if asked == "auto" and device.type == "cpu" else asked]:
        try:
            model.set_attn_implementation(name)
            error = probe.error()
        except (ModelError, ValueError, ImportError, RuntimeError, KeyError) as problem:
            reasons.append(f"{name}: {str(problem).splitlines()[0]}")
            continue
        if error <= ISOLATION_TOLERANCE[probe.dtype]:
            return name
        reasons.append(f"{name}: a packed document differs from the same document alone by {error:.1e}")
    raise ModelError(
        f"attn_implementation: {asked}: packed documents cannot be kept apart in this model ({'; '.join(reasons)})."
    )


class _Probe:
    """Compares a document's hidden states after another document with those alone, by the model's own eager code."""

    def __init__(self, model: Any, device: torch.device) -> None:
        # Ids spread over the vocabulary, so that leaking attention shows.
        vocab_size = model.get_input_embeddings().num_embeddings
        ids = (torch.arange(1, 13) * 7919 % vocab_size).numpy().astype("int32")
        self.model, self.device = model, device
        self.dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        self.first, self.second = (TokenRow(part, part > -1) for part in (ids[:7], ids[7:]))
        model.set_attn_implementation("eager")
        self.expected = self._hidden([self.second])

    def error(self) -> float:
        """Largest difference, relative to the largest value."""
        got = self._hidden([self.first, self.second])[len(self.first) :]
        return ((got - self.expected).abs().max() / self.expected.abs().max().clamp_min(1e-12)).item()

    @torch.no_grad()
    def _hidden(self, rows: list[TokenRow]) -> Tensor:
        was_training = self.model.training
        self.model.eval()
        batch = MicroBatch.collate([PackedRow.from_rows(rows)], pad_token_id=0).to(self.device)
        hidden = forward_hidden(self.model, batch)[0].float()
        self.model.train(was_training)
        return hidden
