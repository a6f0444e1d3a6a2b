"""Token-weighted metrics of one validation dataset, by torchmetrics, so that ranks are reduced rightly."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmetrics import SumMetric


class TokenMetrics(nn.Module):
    """Sums over supervised tokens; `compute` gives loss, perplexity and accuracy."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = SumMetric()
        self.correct = SumMetric()
        self.tokens = SumMetric()

    def update(self, loss_sum: Tensor, num_correct: Tensor, num_tokens: int) -> None:
        """Add one micro-batch."""
        self.loss.update(loss_sum)
        self.correct.update(num_correct)
        self.tokens.update(num_tokens)

    def compute(self) -> dict[str, Tensor]:
        """Return loss (nats per token), perplexity and accuracy; NaN where no token was seen."""
        tokens = self.tokens.compute()
        loss = self.loss.compute() / tokens
        return {"loss": loss, "perplexity": torch.exp(loss), "accuracy": self.correct.compute() / tokens}

    def reset(self) -> None:
        """Start over."""
        for metric in (self.loss, self.correct, self.tokens):
            metric.reset()
