"""The largest logits of long vocabularies, and what a softmax over them is asked for.

Shapes: V vocabulary.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cmasd.kernels import kernels_for
from cmasd.signals import LogitNumbers

LEAST = -1e30
"""In place of -inf, which times probability 0 is not a number."""


class Statistics(NamedTuple):
    """Of logits z (..., V) with the two largest z1 and z2, and of their softmax p; each is (...)."""

    token: Tensor
    """int64: the argmax, the first of equals."""
    numbers: Tensor
    """(..., 6), see `LogitNumbers`."""

    @property
    def top(self) -> Tensor:
        """z1"""
        return self.numbers[..., LogitNumbers.top.place]

    @property
    def log_mass(self) -> Tensor:
        """log sum exp(z - z1), so that -log_mass is the log-probability of the argmax."""
        return self.numbers[..., LogitNumbers.log_mass.place]

    @property
    def scores(self) -> Tensor:
        """(..., 4): `LOGIT_SCORES`, from the entropy on; all in [0, 1]."""
        return self.numbers[..., LogitNumbers.entropy.place :]


def argmax(logits: Tensor) -> Tensor:
    """Like `logits.argmax(-1)`, the first of equals included."""
    kernels = kernels_for(logits)
    return logits.argmax(-1) if kernels is None else kernels.argmax(logits)


def top_and_mass(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of (..., V): `top` and `log_mass` of `Statistics`, both (...); in one pass where there is a kernel."""
    kernels = kernels_for(logits)
    if kernels is not None:
        found = Statistics(*kernels.statistics(logits))
        return found.top, found.log_mass
    top = logits.amax(-1)
    return top, (logits - top[..., None]).exp().sum(-1).log()


def statistics(logits: Tensor) -> Statistics:
    """In one pass where there is a kernel; masked logits (-inf) count as probability 0."""
    kernels = kernels_for(logits)
    if kernels is not None:
        return Statistics(*kernels.statistics(logits))
    top2 = logits.topk(2, dim=-1).values
    top, second = top2.unbind(-1)
    below = (logits - top[..., None]).clamp_min(LEAST)
    shares = below.exp()
    mass = shares.sum(-1)
    log_mass = mass.log()
    nats = log_mass - torch.linalg.vecdot(shares, below) / mass
    entropy = (1 - nats / math.log(logits.shape[-1])).clamp(0, 1)
    max_prob, ratio = 1 / mass, torch.exp(second - top)
    margin, softmax = (1 - ratio) / (1 + ratio), max_prob * (1 - ratio)
    numbers = torch.stack([top, log_mass, entropy, margin, softmax, max_prob], dim=-1)
    return Statistics(logits.argmax(-1), numbers)
