"""The largest logits of long vocabularies, and what a softmax over them is asked for.

Shapes: V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cmasd.kernels import kernels_for

LEAST = -1e30
"""In place of -inf, which times probability 0 is not a number."""


class Statistics(NamedTuple):
    """Of logits z (..., V) with the largest z1 and z2; all (...)."""

    token: Tensor
    """int64: the argmax, the first of equals."""
    margin: Tensor
    """z1 - z2"""
    log_mass: Tensor
    """log sum exp(z - z1), so that -log_mass is the log-probability of the argmax."""
    entropy: Tensor
    """Of the softmax, in nats."""


def argmax(logits: Tensor) -> Tensor:
    """Like `logits.argmax(-1)`, the first of equals included."""
    kernels = kernels_for(logits)
    return logits.argmax(-1) if kernels is None else kernels.argmax(logits)


def top_and_mass(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of (..., V): the largest, and log sum exp(z - z1), both (...); in one pass where there is a kernel."""
    kernels = kernels_for(logits)
    if kernels is not None:
        _, numbers = kernels.statistics(logits)
        return numbers[..., 0], numbers[..., 2]
    top = logits.amax(-1)
    return top, (logits - top[..., None]).exp().sum(-1).log()


def statistics(logits: Tensor) -> Statistics:
    """In one pass where there is a kernel; masked logits (-inf) count as probability 0."""
    kernels = kernels_for(logits)
    if kernels is not None:
        token, numbers = kernels.statistics(logits)
        top, second, log_mass, mean = numbers.unbind(-1)
        return Statistics(token, top - second, log_mass, log_mass - mean)
    top2 = logits.topk(2, dim=-1).values
    below = (logits - top2[..., :1]).clamp_min(LEAST)
    shares = below.exp()
    mass = shares.sum(-1)
    log_mass = mass.log()
    entropy = log_mass - torch.linalg.vecdot(shares, below) / mass
    return Statistics(logits.argmax(-1), top2[..., 0] - top2[..., 1], log_mass, entropy)
