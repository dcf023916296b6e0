"""Verification: which draft tokens the verifier accepts, and what it says after them."""

from collections.abc import Callable, Sequence

from cmasd.config.speculation import VerificationConfig
from cmasd.config.tree import Config
from cmasd.verification.base import Verification
from cmasd.verification.budget import BudgetVerification
from cmasd.verification.exact import ExactVerification
from cmasd.verification.own_draws import OwnDraws
from cmasd.verification.relaxed import ModulatedVerification, RelaxedVerification
from cmasd.verification.sampling import SamplingVerification
from cmasd.verification.typical import TypicalVerification

__all__ = ["KINDS", "ExactVerification", "OwnDraws", "RelaxedVerification", "Verification", "build_verification"]

KINDS: dict[str, Callable[[VerificationConfig, Sequence[int]], Verification]] = {
    "exact": ExactVerification.of,
    "relaxed": RelaxedVerification.of,
    "modulated": ModulatedVerification.of,
    "budget": BudgetVerification.of,
    "typical": TypicalVerification.of,
    "sampling": SamplingVerification.of,
}
"""By `verification.kind`."""


def build_verification(config: Config, eos_ids: Sequence[int]) -> Verification:
    """The rule that `verification.kind` names; sequences end with one of these tokens."""
    if config.policy.kind == "stitch" and config.verification.kind == "sampling":
        return OwnDraws.of(config.verification, eos_ids)
    return KINDS[config.verification.kind](config.verification, eos_ids)
