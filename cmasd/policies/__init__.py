"""Policies: how many tokens each row drafts in an iteration."""

from cmasd.config.tree import Config
from cmasd.policies.base import EDGE, Observation, Policy, Rule
from cmasd.policies.fixed import FixedPolicy, PlainPolicy
from cmasd.policies.goodput import GoodputPolicy
from cmasd.policies.paper import PaperPolicy
from cmasd.policies.stitch import Chance, StitchPolicy
from cmasd.policies.survival import SurvivalPolicy

__all__ = [
    "EDGE",
    "FixedPolicy",
    "GoodputPolicy",
    "Observation",
    "PaperPolicy",
    "PlainPolicy",
    "Policy",
    "Rule",
    "StitchPolicy",
    "SurvivalPolicy",
    "build_policy",
]


def build_policy(config: Config) -> Policy:
    """The policy that `policy.kind` names."""
    k_min, k_max = config.drafter.min_draft_tokens, config.drafter.max_draft_tokens
    policies: dict[str, Policy] = {
        "goodput": GoodputPolicy(k_max, config.policy.explore_share),
        "plain": PlainPolicy(),
        "fixed": FixedPolicy(k_max),
        "paper": PaperPolicy(config.policy.alpha, k_min, k_max),
        "survival": SurvivalPolicy(config.policy.threshold, k_max),
        "stitch": _stitch(config),
    }
    return policies[config.policy.kind]


def _stitch(config: Config) -> StitchPolicy:
    stitch, chance = config.stitch, None
    if stitch.random:
        dropped, returned = stitch.random
        chance = Chance(config.verification.seed, dropped, returned)
    return StitchPolicy(stitch.tau, config.drafter.max_draft_tokens, stitch.speculate, stitch.max_wait, chance)
