"""Made-up iterations: what a policy is told after one."""

import torch
from torch import Tensor

from cmasd.core import Draft, Verdict


def iteration(confidence_BK: Tensor, lengths: list[int], accepted: list[int]) -> tuple[Draft, Verdict]:
    """A draft with these confidences, judged so; tokens do not matter to a policy."""
    tokens_BK = torch.zeros(confidence_BK.shape, dtype=torch.int64)
    draft = Draft(tokens_BK, torch.tensor(lengths), confidence_BK, confidence_BK[..., None].expand(-1, -1, 3))
    next_B = torch.zeros(len(lengths), dtype=torch.int64)
    return draft, Verdict(torch.tensor(accepted), next_B, torch.zeros_like(confidence_BK))
