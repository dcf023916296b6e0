"""Policies: how many tokens each row drafts in an iteration."""

from cmasd.config.tree import Config
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
    nodes = config.drafter.tree_nodes
    policies: dict[str, Policy] = {
        "goodput": GoodputPolicy(k_max, config.policy.explore_share, tree_nodes=nodes),
        "plain": PlainPolicy(),
        "fixed": FixedPolicy(k_max, nodes),
        "paper": PaperPolicy(config.policy.alpha, k_min, k_max, nodes),
        "survival": SurvivalPolicy(config.policy.threshold, k_max, nodes),
    }
    return policies[config.policy.kind]
