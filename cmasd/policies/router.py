"""What a trained router decides by, how it decides, and the log of what was decided, from which it is trained.

Behind each token of either model's the question is one: does the large model speak next? Asked of the small model's
token, yes drops it; asked of the large model's, no hands back. Where the speaker's entropy is at most the router's tau
the small model speaks, unasked. In use the answer is the likelier one; in training it is drawn, by a number that the
caller has for the row and the place.

Shapes: R rows, F features, N decisions.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmasd.checkpoints.router_folder import load_router
from cmasd.models.router_network import RouterNetwork
from cmasd.policies.base import Float64, Int64

FEATURES = (
    *("entropy", "log_entropy", "margin", "softmax", "log_recent_entropy"),
    *("log_said", "log_left", "log_context", "is_large"),
)
"""What a router looks at, see `Behind.features`."""
LEAST_ENTROPY = 1e-6
"""Over ln V: below it models are all as sure."""
RECENT = 8
"""Tokens after which the mean of a row's entropies has forgotten all but 1/e."""


@dataclass(frozen=True)
class Behind:
    """What is known of R rows behind a token that one of the models has put forward for each."""

    components_R3: Tensor
    """float32: entropy, margin (in the full form) and softmax of its speaker, as `Draft.components_BK3`."""
    recent_R: Tensor
    """float64: mean entropy over ln V of the row's tokens before this one, the latest counting most."""
    places_R: Tensor
    """int64: of the token in its row."""
    prompts_R: Tensor
    """int64: tokens of the row that were not generated."""
    limits_R: Tensor
    """int64: place at which the row must stop."""
    is_large: bool
    """Whose token it is."""

    @property
    def entropy_R(self) -> Tensor:
        """float64, over ln V."""
        return (1 - self.components_R3[:, 0].double()).clamp_min(0.0)

    @property
    def features_RF(self) -> Tensor:
        """float64: `FEATURES`."""
        entropy_R = self.entropy_R
        columns = (
            entropy_R,
            entropy_R.clamp_min(LEAST_ENTROPY).log(),
            self.components_R3[:, 1].double(),
            self.components_R3[:, 2].double(),
            self.recent_R.clamp_min(LEAST_ENTROPY).log(),
            (self.places_R - self.prompts_R).double().log1p(),
            (self.limits_R - self.places_R).double().log1p(),
            self.places_R.double().log1p(),
            torch.full_like(entropy_R, float(self.is_large)),
        )
        return torch.stack(columns, dim=-1)


@dataclass(frozen=True)
class Router:
    """A network, and how it is used."""

    network: RouterNetwork
    draws: int | None = None
    """Seed of the draws in training; None: the likelier speaker."""

    @classmethod
    def of(cls, name: str) -> Self:
        """The one in a folder."""
        return cls(load_router(name, FEATURES))

    @property
    def tau(self) -> float:
        """See `RouterShape`."""
        return self.network.shape.tau

    def asked(self, behind: Behind) -> Tensor:
        """(R,) bool: where there is a question."""
        return behind.entropy_R > self.tau

    def wants_large(self, behind: Behind, tosses_R: Tensor | None) -> Tensor:
        """(R,) bool: the large model speaks next; `tosses_R` in [0, 1) where it is drawn."""
        with torch.no_grad():
            logits_R = self.network(behind.features_RF)
        large_R = logits_R > 0 if tosses_R is None else tosses_R < logits_R.sigmoid()
        wants_R: Tensor = large_R & self.asked(behind)
        return wants_R


@dataclass(frozen=True)
class Decisions:
    """What was decided behind N tokens, in the order of time; of a row in the order of its tokens."""

    keys_N: Int64
    """Of the row."""
    places_N: Int64
    """Of the token in the row."""
    tokens_N: Int64
    """Put forward."""
    is_large_N: NDArray[np.bool_]
    """By which model."""
    wants_large_N: NDArray[np.bool_]
    """What was decided: the large model speaks next."""
    asked_N: NDArray[np.bool_]
    """Whether that was open: neither decided by tau, nor behind a row's last token."""
    read_N: Int64
    """Tokens that the model read to say this one."""
    features_NF: Float64

    def by_row(self, rows: int) -> "list[Decisions]":
        """Of each of the rows with keys 0, 1, ..."""
        order_N = np.argsort(self.keys_N, kind="stable")
        ends = np.searchsorted(self.keys_N[order_N], np.arange(rows + 1))
        columns = [column[order_N] for column in vars(self).values()]
        return [Decisions(*(column[first:end] for column in columns)) for first, end in pairwise(ends)]


@dataclass
class DecisionLog:
    """Collects decisions while an engine decodes."""

    _parts: list[tuple[Tensor, ...]] = field(default_factory=list)

    def add(
        self,
        keys: list[int],
        behind: Behind,
        tokens_R: Tensor,
        wants_large_R: Tensor,
        asked_R: Tensor,
        read_R: Tensor,
    ) -> None:
        """One for each of some rows."""
        keys_R = torch.tensor(keys, dtype=torch.int64)
        is_large_R = torch.full_like(wants_large_R, behind.is_large)
        parts = (behind.places_R, tokens_R, is_large_R, wants_large_R, asked_R, read_R, behind.features_RF)
        self._parts.append((keys_R, *(part.cpu().clone() for part in parts)))

    def take(self) -> Decisions:
        """All of them; the log is empty then."""
        parts, self._parts = self._parts, []
        return Decisions(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))
