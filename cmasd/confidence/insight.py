"""Confidence that looks behind the logits: at how alike the candidates are, or at whether parts of the state agree.

    similarity   C = sum over the n likeliest tokens i of p_i * max(0, cos(e_1, e_i)), e being rows of the output layer:
                 a rival that means the same takes nothing away
    dropout      C = 1 - I / ln M, where I = H(mean of p_m) - mean of H(p_m) over M fixed masks of the last hidden
                 state: the mutual information of token and mask, doubt of the model's own and not of the text's
                 (Houlsby et al., arXiv 1112.5745; Gal and Ghahramani, arXiv 1506.02142)

Masks are drawn once from a seed, so that M heads stand side by side and a row's numbers are its own.

Shapes: F tokens that are gone on from, V vocabulary, n candidates, M masks, d width of the state.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cmasd.config.speculation import INSIGHTS

CANDIDATES = 8
MASKS = 8
RATE = 0.2
"""Share of a state that a mask leaves out."""


class Insight:
    """One of `INSIGHTS`, of one model."""

    def __init__(
        self, kind: str, rows: Callable[[Tensor], Tensor], logits: Callable[[Tensor], Tensor], rate: float = RATE
    ) -> None:
        """`rows` gives weights (..., d) of columns (...) of the output layer, `logits` (..., V) of states (..., d)."""
        assert kind in INSIGHTS, f"{kind} is made of logits"
        self._kind = kind
        self._rows = rows
        self._logits = logits
        self._rate = rate
        self._masks_Md: Tensor | None = None

    def __call__(self, logits_FV: Tensor, hidden_Fd: Tensor) -> Tensor:
        """(F,) float32 in [0, 1]; columns that rules have ruled out (-inf) count as probability 0."""
        if self._kind == "similarity":
            return self._similarity(logits_FV.float())
        return self._agreement(logits_FV, hidden_Fd)

    def _similarity(self, logits_FV: Tensor) -> Tensor:
        log_total_F1 = logits_FV.logsumexp(-1, keepdim=True)
        top_Fn, columns_Fn = logits_FV.topk(min(CANDIDATES, logits_FV.shape[-1]))
        shares_Fn = (top_Fn - log_total_F1).exp()
        columns_Fn = columns_Fn.where(shares_Fn > 0, columns_Fn[:, :1])  # what cannot be said may have no row
        rows_Fnd = torch.nn.functional.normalize(self._rows(columns_Fn).float(), dim=-1)
        alike_Fn = (rows_Fnd @ rows_Fnd[:, 0, :, None]).squeeze(-1)
        return (shares_Fn * alike_Fn.clamp_min(0)).sum(-1).clamp(0, 1)

    def _agreement(self, logits_FV: Tensor, hidden_Fd: Tensor) -> Tensor:
        if self._masks_Md is None:
            generator = torch.Generator().manual_seed(0)
            kept_Md = torch.rand(MASKS, hidden_Fd.shape[-1], generator=generator) >= self._rate
            self._masks_Md = (kept_Md / (1 - self._rate)).to(hidden_Fd.device, hidden_Fd.dtype)
        each_MFV = torch.stack([self._logits(hidden_Fd * mask_d).float() for mask_d in self._masks_Md])
        ruled_out_FV = logits_FV[..., : each_MFV.shape[-1]] == -torch.inf
        probs_MFV = each_MFV.masked_fill(ruled_out_FV, -torch.inf).softmax(-1)
        information_F = _entropy(probs_MFV.mean(0)) - _entropy(probs_MFV).mean(0)
        return (1 - information_F / math.log(MASKS)).clamp(0, 1)


def _entropy(probs: Tensor) -> Tensor:
    """(...) nats of (..., V)."""
    nats: Tensor = torch.special.entr(probs).sum(-1)
    return nats
