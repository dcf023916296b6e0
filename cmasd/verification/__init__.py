"""Verification: which draft tokens the verifier accepts, and what it says after them."""

from cmasd.config.tree import Config
from cmasd.verification.base import Verification
from cmasd.verification.budget import BudgetVerification
from cmasd.verification.exact import ExactVerification
from cmasd.verification.own_draws import OwnDraws
from cmasd.verification.relaxed import ModulatedVerification, RelaxedVerification
from cmasd.verification.sampling import SamplingVerification
from cmasd.verification.typical import TypicalVerification

__all__ = [
    "ExactVerification",
    "OwnDraws",
    "RelaxedVerification",
    "TypicalVerification",
    "Verification",
    "build_verification",
]


def build_verification(whole: Config, eos_token_ids: tuple[int, ...]) -> Verification:
    """The rule that `verification.kind` names, or the budget rule where `policy.quality_budget...` is set."""
    config = whole.verification
    match config.kind:
        case "exact" if whole.quality_budget:
            return BudgetVerification(whole.quality_budget, config.beta, config.tau, eos_token_ids)
        case "exact":
            return ExactVerification()
        case "relaxed":
            return RelaxedVerification(config.beta, config.tau)
        case "modulated":
            return ModulatedVerification(config.beta, config.tau_base, config.gamma, config.tau_form)
        case "typical":
            return TypicalVerification(config.epsilon, config.delta)
        case "sampling" if whole.policy.kind == "stitch":
            return OwnDraws(config.temperature, config.seed)
        case "sampling":
            return SamplingVerification(config.temperature, config.seed)
