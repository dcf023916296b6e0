"""The router of R-Stitch+ (arXiv 2507.17307): from what is known behind a token to who speaks next.

A network of one hidden layer, in float64, whose sums run over each row alone: a row's logit is the same bit for bit in
every batch. It looks at signals of the models' logits, not at their states: any pair of models has them, at no cost.

Shapes: R rows, F features, H hidden units.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

FAR = 8.0
"""Standard deviations beyond which a feature counts as this far: what was never seen leads nowhere new."""


@dataclass(frozen=True)
class RouterShape:
    """Of a router."""

    features: tuple[str, ...]
    """Names of what it looks at, in order."""
    hidden: int
    """Units of its hidden layer."""
    tau: float
    """Entropy over ln V at or below which the small model speaks without the router being asked."""


class RouterNetwork(nn.Module):
    """The log-odds that the large model speaks next."""

    mean_F: Tensor
    scale_F: Tensor

    def __init__(self, shape: RouterShape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        wide, deep = len(shape.features), shape.hidden
        generator = torch.Generator().manual_seed(seed)

        def drawn(*size: int, deviation: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64) * deviation)

        self.register_buffer("mean_F", torch.zeros(wide, dtype=torch.float64))
        self.register_buffer("scale_F", torch.ones(wide, dtype=torch.float64))
        self.weight_HF = drawn(deep, wide, deviation=wide**-0.5)
        self.bias_H = drawn(deep, deviation=0.0)
        self.out_H = drawn(deep, deviation=deep**-0.5)
        self.bias = drawn(deviation=0.0)

    @torch.no_grad()
    def standardise(self, features_NF: Tensor) -> None:
        """Measure features in standard deviations from the mean of these; of what never varies, in units."""
        self.mean_F.copy_(features_NF.mean(0))
        deviation_F = features_NF.std(0, correction=0)
        self.scale_F.copy_(torch.where(deviation_F > 1e-6, deviation_F, 1.0))

    def forward(self, features_RF: Tensor) -> Tensor:
        """(R,) float64."""
        near_RF = ((features_RF - self.mean_F) / self.scale_F).clamp(-FAR, FAR)
        hidden_RH = torch.tanh((near_RF[:, None] * self.weight_HF).sum(-1) + self.bias_H)
        logits_R: Tensor = (hidden_RH * self.out_H).sum(-1) + self.bias
        return logits_R
