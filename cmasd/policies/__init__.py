"""Policies: how many tokens each row drafts in an iteration."""

from collections.abc import Callable

from cmasd.config.tree import Config
from cmasd.policies.base import EDGE, Observation, Policy, Rule
from cmasd.policies.fixed import FixedPolicy, PlainPolicy
from cmasd.policies.goodput import GoodputPolicy
from cmasd.policies.paper import PaperPolicy
from cmasd.policies.stitch import StitchPolicy
from cmasd.policies.survival import SurvivalPolicy

__all__ = [
    "EDGE",
    "KINDS",
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

KINDS: dict[str, Callable[[Config], Policy]] = {
    "goodput": GoodputPolicy.of,
    "plain": PlainPolicy.of,
    "fixed": FixedPolicy.of,
    "paper": PaperPolicy.of,
    "survival": SurvivalPolicy.of,
    "stitch": StitchPolicy.of,
}
"""By `policy.kind`."""


def build_policy(config: Config) -> Policy:
    """The policy that `policy.kind` names."""
    return KINDS[config.policy.kind](config)
