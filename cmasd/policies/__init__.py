"""Policies: how many tokens each row drafts in an iteration."""

from cmasd.config.tree import Config
from cmasd.policies.acceptance import HOPE_OF_PREVIOUS, Calibration
from cmasd.policies.base import EDGE, Observation, Policy, Rule
from cmasd.policies.fixed import FixedPolicy, PlainPolicy
from cmasd.policies.goodput import GoodputPolicy
from cmasd.policies.paper import PaperPolicy
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
    }
    policy = policies[config.policy.kind]
    if isinstance(policy, GoodputPolicy) and "previous" in config.drafter.kinds:
        policy.calibration = Calibration(k_max, HOPE_OF_PREVIOUS)
    return policy
