"""The arithmetic of DAPO (arXiv 2503.14476) for a router, and of what it is rewarded for (R-Stitch+, arXiv 2507.17307).

    reward     r = right - lambda * right * latency            latency: over the large model's for the same question
    advantage  A = (r - mean of the group) / deviation of it   a group: the rollouts of one question
    loss       - mean over all decisions of min(q A, clip(q, 1 - low, 1 + high) A),   q = P(decision) / P(it, as drawn)

A group whose rewards are all the same says nothing and is dropped. The mean is over decisions, not over rollouts, so
that a long row weighs as much as its length.

Shapes: P questions, G rollouts of each, N decisions.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from cmasd.policies.base import Float64

LEAST_DEVIATION = 1e-9
"""Of the rewards of a group that says something."""


def reward(right: bool, latency: float, weight: float) -> float:
    """Of one rollout; a wrong answer is worth nothing, however fast it came."""
    return float(right) * (1.0 - weight * latency)


def advantages(rewards_PG: Float64) -> Float64:
    """(P, G); NaN for groups that say nothing."""
    deviation_P1 = rewards_PG.std(axis=1, keepdims=True)
    centred_PG = rewards_PG - rewards_PG.mean(axis=1, keepdims=True)
    centred_PG[deviation_P1[:, 0] <= LEAST_DEVIATION] = float("nan")
    result: Float64 = centred_PG / deviation_P1.clip(LEAST_DEVIATION)
    return result


def logprobs(logits_N: Tensor, wants_large_N: Tensor) -> Tensor:
    """(N,) log-probability of decisions."""
    return logsigmoid(torch.where(wants_large_N, logits_N, -logits_N))


def clipped_loss(
    logprob_N: Tensor, drawn_logprob_N: Tensor, advantage_N: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """(N,) loss, and bool where it was clipped."""
    ratio_N = (logprob_N - drawn_logprob_N).exp()
    free_N = ratio_N * advantage_N
    held_N = ratio_N.clamp(1 - low, 1 + high) * advantage_N
    return -torch.minimum(free_N, held_N), held_N < free_N
