"""A kind that can be configured can be built: the registries hold exactly the names that the configuration knows."""

from typing import get_args, get_type_hints

import pytest
from torch import Tensor

from cmasd import policies, verification
from cmasd.config import from_dict
from cmasd.config.speculation import FREE_DRAFTERS, MODEL_DRAFTERS, PolicyConfig, VerificationConfig
from cmasd.core import Draft
from cmasd.drafters import Context, Drafter, kinds
from cmasd.drafters.base import empty_draft
from cmasd.engine import Engine
from cmasd.policies import GoodputPolicy, Policy, Rule, build_policy
from cmasd.policies.estimators import ESTIMATORS
from cmasd.runner.base import Extent
from cmasd.verification import build_verification
from tests.unit.engine.pairs import decode_plain, ragged_requests, shared_pair, tiny_config, tokens_of


def names(section: type, key: str = "kind") -> set[str]:
    return set(get_args(get_type_hints(section)[key]))


def test_every_name_has_its_kind_and_every_kind_its_name() -> None:
    assert set(policies.KINDS) == names(PolicyConfig)
    assert set(ESTIMATORS) == names(PolicyConfig, "estimator")
    assert set(verification.KINDS) == names(VerificationConfig)
    assert set(kinds.KINDS) == set(MODEL_DRAFTERS)
    assert not set(kinds.KINDS) & set(FREE_DRAFTERS)


@pytest.mark.parametrize("kind", sorted(policies.KINDS))
def test_a_policy_follows_its_section(kind: str) -> None:
    policy = build_policy(from_dict({"policy": {"kind": kind}, "drafter": {"max_draft_tokens": 7}}))
    assert isinstance(policy, Policy)
    assert policy.max_draft_tokens == (0 if kind == "plain" else 7)


@pytest.mark.parametrize("kind", sorted(ESTIMATORS))
def test_goodput_learns_by_the_estimator_that_is_asked_for(kind: str) -> None:
    policy = build_policy(from_dict({"policy": {"kind": "goodput", "estimator": kind}}))
    assert isinstance(policy, GoodputPolicy)
    assert type(policy.calibration) is ESTIMATORS[kind]
    assert policy.wants_signals == (kind == "signals")
    policy.look_no_more()
    assert not policy.wants_signals, "nobody copies what nobody reads"


@pytest.mark.parametrize("kind", sorted(verification.KINDS))
def test_only_rules_that_need_the_host_keep_it_waiting(kind: str) -> None:
    rule = build_verification(from_dict({"verification": {"kind": kind}}), (1,))
    assert rule.needs_host == (kind in ("sampling", "budget"))


class Silent(Drafter):
    """The least that a drafter must say."""

    def draft(self, context: Context, room_B: Tensor, rule: Rule, extent: Extent | None = None) -> Draft:
        return empty_draft(context)


def test_a_drafter_that_keeps_nothing_of_rows_has_only_its_draft_to_say() -> None:
    pair, requests = shared_pair("marian"), ragged_requests(9, seed=4)
    engine = Engine(pair, tiny_config(policy={"kind": "fixed"}))
    engine.iterations.drafter = engine._rows._drafter = Silent()
    decoded = {result.key: result for result in engine.decode(requests)}
    assert tokens_of(decoded) == tokens_of(decode_plain(pair, requests))
    assert (engine.stats.drafted_tokens, engine.stats.tokens_per_iteration) == (0, 1)
