"""Who of two models speaks next in each row: by entropy, by chance, or by a trained router.

Every answer is a function of the row alone, of its key and of the place in it: of nothing that depends on the batch.

Shapes: B live rows, R of them.
"""

import torch
from torch import Tensor

from cmasd.drafters import Context
from cmasd.policies import StitchPolicy
from cmasd.policies.router import RECENT, Behind
from cmasd.verification.own_draws import DROP, RETURN, tossed


class Routing:
    """Follows the engine's slots."""

    def __init__(self, policy: StitchPolicy, slots: int, device: torch.device) -> None:
        self._policy = policy
        if policy.router is not None:
            policy.router.network.to(device)
        self._recent = torch.zeros(slots, dtype=torch.float64, device=device)
        """(C,) see `Behind.recent_R`."""

    def enter(self, slots: list[int]) -> None:
        """New rows."""
        self._recent[slots] = 0.0

    def move(self, source: int, target: int) -> None:
        """The row in slot `source` is now in slot `target`."""
        self._recent[target] = self._recent[source]

    def drops(
        self, context: Context, rows_R: Tensor, keys: list[int], components_R3: Tensor, token_R: Tensor
    ) -> Tensor:
        """(R,) bool: the small model's token for the place behind each row is dropped, and the large one speaks."""
        behind = self._behind(context, rows_R, context.lengths_B[rows_R], components_R3, is_large=False)
        open_R, one_R = torch.ones_like(rows_R, dtype=torch.bool), torch.ones_like(rows_R)
        return self._wants_large(rows_R, keys, behind, token_R, open_R, one_R)

    def keeps(
        self,
        context: Context,
        rows_R: Tensor,
        keys: list[int],
        components_R3: Tensor,
        places_R: Tensor,
        token_R: Tensor,
        open_R: Tensor,
        read_R: Tensor,
    ) -> Tensor:
        """(R,) bool: the large model speaks on behind its token at these places; of rows that go on, `open_R` (R,)."""
        behind = self._behind(context, rows_R, places_R, components_R3, is_large=True)
        return self._wants_large(rows_R, keys, behind, token_R, open_R, read_R)

    def _behind(
        self, context: Context, rows_R: Tensor, places_R: Tensor, components_R3: Tensor, is_large: bool
    ) -> Behind:
        prompts_R, limits_R = context.prompt_lengths_B[rows_R], context.limits_B[rows_R]
        return Behind(components_R3, self._recent[rows_R], places_R, prompts_R, limits_R, is_large)

    def _wants_large(
        self, rows_R: Tensor, keys: list[int], behind: Behind, token_R: Tensor, open_R: Tensor, read_R: Tensor
    ) -> Tensor:
        policy, purpose = self._policy, RETURN if behind.is_large else DROP
        asked_R = open_R
        if policy.chance is not None:
            chance, coin_R = policy.chance, tossed(policy.chance.seed, keys, behind.places_R, purpose)
            large_R = coin_R >= chance.returned if behind.is_large else coin_R < chance.dropped
        elif policy.router is not None:
            draws = policy.router.draws
            toss_R = None if draws is None else tossed(draws, keys, behind.places_R, purpose)
            large_R = policy.router.wants_large(behind, toss_R)
            asked_R = open_R & policy.router.asked(behind)
        else:
            large_R = ~policy.is_sure(behind.components_R3[:, 0], behind.is_large)
        if policy.log is not None:
            policy.log.add(keys, behind, token_R, large_R, asked_R, read_R)
        if policy.log is not None or policy.router is not None:
            self._recent[rows_R] += (behind.entropy_R - behind.recent_R) / RECENT
        return large_R
