"""Spend a budget of log-probability where it buys the most tokens (the budget form of CM-ASD's threshold).

A draft token that is not the verifier's argmax costs its gap in nats; accepting it can let the tokens after it
through, which one verifier forward has already judged. So each row takes the prefix a that maximises

    a - price * (gaps of the first a tokens added up)

and the price, one for all rows, is moved until the mean gap per output token meets the budget. Whatever the price, an
iteration never spends more than the budget has left over from the tokens so far: the mean gap stays within the
budget at every moment of an engine's life. A budget of 0 is exact verification; any other is lossy.

Shapes: B rows, K draft, V vocabulary.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from cmasd.confidence.largest import argmax
from cmasd.config.speculation import VerificationConfig
from cmasd.core import Draft, Logits, Verdict
from cmasd.verification.base import Verification, pick

FIRST_PRICE = 4.0
"""Tokens per nat."""
STEP = 1.25
"""Factor by which the price follows the balance in each iteration, those without a draft included."""
DEAREST, CHEAPEST = 1e6, 1e-2


class BudgetVerification(Verification):
    """Lossy within `budget` nats per output token; `beta` and `tau` bound what a single token may be."""

    def __init__(self, budget_nats_per_token: float, beta: int, tau: float, eos_token_ids: Sequence[int]) -> None:
        self.budget = budget_nats_per_token
        self._eos_ids = torch.tensor(eos_token_ids, dtype=torch.int64)
        self.beta = beta
        self.tau = tau
        self.price = FIRST_PRICE
        self.spent_nats = 0.0
        self.tokens = 0

    @classmethod
    def of(cls, config: VerificationConfig, eos_ids: Sequence[int]) -> Self:
        """As configured."""
        return cls(config.budget_nats_per_token, config.beta, config.tau, eos_ids)

    def verify(self, draft: Draft, logits: Logits) -> Verdict:
        """Choose prefixes, then settle the account."""
        logits_BTV = logits.padded_BTV
        best_BT = argmax(logits_BTV)
        rows, most = draft.tokens_BK.shape
        if most == 0:
            self.tokens += rows
            self._move_price()
            return Verdict(draft.lengths_B, best_BT[:, 0], draft.confidence_BK)
        position_K = torch.arange(most, device=best_BT.device)
        is_end_BK = torch.isin(draft.tokens_BK, self._eos_ids.to(best_BT.device))
        is_past_BK = (position_K >= draft.lengths_B[:, None]) | (is_end_BK.long().cumsum(-1) > is_end_BK)
        spent_BK = self._gaps(draft, logits_BTV, best_BT).masked_fill_(is_past_BK, torch.inf).cumsum(-1)
        balance = self.budget * self.tokens - self.spent_nats
        accepted_B, spent = self._choose(spent_BK, self.price, balance)
        # A row gains its accepted tokens and one of the verifier's own, unless it ended before.
        has_ended_B = (is_end_BK & (position_K < accepted_B[:, None])).any(-1)
        self.tokens += int(accepted_B.sum()) + int((~has_ended_B).sum())
        self.spent_nats += spent
        self._move_price()
        return Verdict(accepted_B, pick(best_BT, accepted_B), torch.full_like(draft.confidence_BK, self.tau))

    def _move_price(self) -> None:
        """Down while there is something left to spend, up when there is not."""
        has_left = self.spent_nats < self.budget * self.tokens
        self.price = min(max(self.price / STEP if has_left else self.price * STEP, CHEAPEST), DEAREST)

    def _gaps(self, draft: Draft, logits_BTV: Tensor, best_BT: Tensor) -> Tensor:
        """(B, K) nats; 0 for the argmax, infinite for what may not be accepted at all."""
        logits_BKV = logits_BTV[:, :-1].float()
        drafted_BK1 = logits_BKV.gather(-1, draft.tokens_BK[..., None])
        gap_BK = logits_BKV.amax(-1) - drafted_BK1.squeeze(-1)
        allowed_BK = (logits_BKV > drafted_BK1).sum(-1) < self.beta
        allowed_BK &= gap_BK <= self.tau
        return gap_BK.masked_fill(draft.tokens_BK == best_BT[:, :-1], 0.0).masked_fill(~allowed_BK, torch.inf)

    @staticmethod
    def _choose(spent_BK: Tensor, price: float, balance: float) -> tuple[Tensor, float]:
        """(B,) accepted tokens and what they cost together: at most `balance`, if need be at a higher price."""
        gained_K = torch.arange(1, spent_BK.shape[1] + 1, device=spent_BK.device)
        while True:
            worth_BT = torch.nn.functional.pad(gained_K - price * spent_BK, (1, 0))
            # Of equals the longest: flipped, because argmax takes the first.
            accepted_B = spent_BK.shape[1] - worth_BT.flip(-1).argmax(-1)
            spent = float(torch.nn.functional.pad(spent_BK, (1, 0)).gather(1, accepted_B[:, None]).sum())
            if spent <= max(balance, 0.0):
                return accepted_B, spent
            price *= 4.0
