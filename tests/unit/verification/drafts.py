"""Random drafts and verifier logits, and the rules written as loops over one token at a time."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cmasd.config.speculation import VerificationConfig
from cmasd.config.tree import Config
from cmasd.core import Draft
from cmasd.verification import Verification, build_verification

VOCABULARY = 12
Acceptable = Callable[[Tensor, int, float], bool]
"""(verifier logits (V,), draft token, confidence) -> whether the rule takes the token."""


def rule_of(config: VerificationConfig) -> Verification:
    """The rule in a configuration that sets nothing else."""
    return build_verification(Config(verification=config), eos_ids=())


def random_case(seed: int, rows: int = 40, longest: int = 4, near: float = 0.7) -> tuple[Draft, Tensor]:
    """A draft and (B, K + 1, V) float64 logits; drafts are the verifier's argmax with probability `near`."""
    generator = torch.Generator().manual_seed(seed)
    logits_BTV = 2 * torch.randn(rows, longest + 1, VOCABULARY, generator=generator, dtype=torch.float64)
    tokens_BK = torch.randint(0, VOCABULARY, (rows, longest), generator=generator)
    likely_BK = torch.rand(rows, longest, generator=generator) < near
    tokens_BK = torch.where(likely_BK, logits_BTV[:, :-1].argmax(-1), tokens_BK)
    lengths_B = torch.randint(0, longest + 1, (rows,), generator=generator)
    confidence_BK = torch.rand(rows, longest, generator=generator)
    return Draft(tokens_BK, lengths_B, confidence_BK, torch.zeros(rows, longest, 3)), logits_BTV


def log_prob(logits_V: Tensor, token: int) -> float:
    """Natural logarithm of the softmax, by hand."""
    values = logits_V.tolist()
    top = max(values)
    return float(values[token] - top - math.log(sum(math.exp(value - top) for value in values)))


def rank(logits_V: Tensor, token: int) -> int:
    """How many tokens are likelier."""
    values = logits_V.tolist()
    return sum(value > values[token] for value in values)


def gap_nats(logits_V: Tensor, token: int) -> float:
    """log P(top 1) - log P(token)."""
    return log_prob(logits_V, int(logits_V.argmax())) - log_prob(logits_V, token)


def reference(draft: Draft, logits_BTV: Tensor, acceptable: Acceptable) -> tuple[list[int], list[int]]:
    """(accepted, next token) of every row: the longest acceptable prefix, then the verifier's argmax."""
    accepted, following = [], []
    for row, tokens in enumerate(draft.tokens_BK.tolist()):
        count = 0
        while count < int(draft.lengths_B[row]) and acceptable(
            logits_BTV[row, count], tokens[count], float(draft.confidence_BK[row, count])
        ):
            count += 1
        accepted.append(count)
        following.append(int(logits_BTV[row, count].argmax()))
    return accepted, following
