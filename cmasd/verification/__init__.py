"""Verification: which draft tokens the verifier accepts, and what it says after them."""

from cmasd.config.tree import VerificationConfig
from cmasd.verification.base import Verification
from cmasd.verification.exact import ExactVerification
from cmasd.verification.relaxed import ModulatedVerification, RelaxedVerification
from cmasd.verification.sampling import SamplingVerification
from cmasd.verification.typical import TypicalVerification

__all__ = ["Verification", "build_verification"]


def build_verification(config: VerificationConfig) -> Verification:
    """The rule that `verification.kind` names."""
    match config.kind:
        case "exact":
            return ExactVerification()
        case "relaxed":
            return RelaxedVerification(config.beta, config.tau)
        case "modulated":
            return ModulatedVerification(config.beta, config.tau_base, config.gamma, config.tau_form)
        case "typical":
            return TypicalVerification(config.epsilon, config.delta)
        case "sampling":
            return SamplingVerification(config.temperature, config.seed)
