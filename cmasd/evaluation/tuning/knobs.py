"""What `cmasd tune` turns: the settings of CM-ASD, as an optimiser proposes them and as a configuration has them.

The policy is always `paper`, the confidence the ensemble. Values are rounded, so that a file with them is read easily;
what is left alone (who drafts, `min_draft_tokens`, `beta`, `margin_form`) is the user's.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from cmasd.config.tree import Config
from cmasd.signals import COMPONENTS

ALPHA = (0.2, 3.0)
NATS = (0.0, 3.0)
"""Of tau_base and gamma."""
STEP = 0.05
FORMS = ("prose", "printed")


@dataclass(frozen=True)
class Knobs:
    """One setting of CM-ASD."""

    max_draft_tokens: int
    alpha: float
    weights: tuple[float, float, float]
    """Of entropy, margin and softmax in the ensemble."""
    tau_base: float | None = None
    """In nats; None: exact verification, and so no gamma and no form."""
    gamma: float = 0.0
    """In nats."""
    tau_form: Literal["prose", "printed"] = "prose"

    @property
    def is_lossless(self) -> bool:
        """Whether verification is exact."""
        return self.tau_base is None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def configured(self, config: Config) -> Config:
        """`config` with these settings."""
        k_min = min(config.drafter.min_draft_tokens, self.max_draft_tokens)
        rule: dict[str, Any] = {"kind": "exact"}
        if self.tau_base is not None:
            rule = {"kind": "modulated", "tau_base": self.tau_base, "gamma": self.gamma, "tau_form": self.tau_form}
        return replace(
            config,
            drafter=replace(config.drafter, max_draft_tokens=self.max_draft_tokens, min_draft_tokens=k_min),
            policy=replace(config.policy, kind="paper", alpha=self.alpha),
            verification=replace(config.verification, **rule),
            confidence=replace(config.confidence, kind="ensemble", weights=list(self.weights)),
        )


def suggest(trial: Any, most: int, is_lossless: bool) -> Knobs:
    """What an optuna trial proposes, with drafts of at most `most` tokens."""
    k_max = trial.suggest_int("max_draft_tokens", 1, most)
    alpha = round(trial.suggest_float("alpha", *ALPHA, step=STEP), 2)
    weights = simplex([trial.suggest_float(name, 0.0, 1.0) for name in COMPONENTS])
    if is_lossless:
        return Knobs(k_max, alpha, weights)
    tau_base, gamma = (round(trial.suggest_float(name, *NATS, step=STEP), 2) for name in ("tau_base", "gamma"))
    return Knobs(k_max, alpha, weights, tau_base, gamma, trial.suggest_categorical("tau_form", FORMS))


def simplex(parts: list[float]) -> tuple[float, float, float]:
    """Shares with three digits that add up to 1; equal ones of nothing."""
    total = sum(parts)
    first, second, _ = (math.floor(1000 * part / total) / 1000 if total else 0.333 for part in parts)
    return first, second, round(1 - first - second, 3)


def starts(config: Config, most: int, is_lossless: bool) -> list[dict[str, Any]]:
    """Proposals to begin with: the user's own settings, in both forms of tau, brought into range where they are out."""
    rule = config.verification
    first: dict[str, Any] = {
        "max_draft_tokens": min(config.drafter.max_draft_tokens, most),
        "alpha": _stepped(config.policy.alpha, *ALPHA),
        **dict(zip(COMPONENTS, config.confidence.weights, strict=True)),
    }
    if is_lossless:
        return [first]
    nats = {"tau_base": _stepped(rule.tau_base, *NATS), "gamma": _stepped(rule.gamma, *NATS)}
    return [{**first, **nats, "tau_form": form} for form in FORMS]


def _stepped(value: float, low: float, high: float) -> float:
    """The nearest of low, low + STEP, ... high."""
    return round(low + STEP * round((min(max(value, low), high) - low) / STEP), 2)
