"""The budget rule: the best prefixes by brute force, and an account that is never overdrawn."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmasd.config import from_dict
from cmasd.config.rules import check
from cmasd.config.speculation import VerificationConfig
from cmasd.config.tree import Config
from cmasd.core import Draft, Logits, Request
from cmasd.engine import Engine, Pair
from cmasd.errors import ConfigError
from cmasd.generation.constraints import Constraints
from cmasd.policies import GoodputPolicy, Rule
from cmasd.verification import build_verification
from cmasd.verification.budget import BudgetVerification
from cmasd.verification.exact import ExactVerification
from tests.unit.engine.pairs import decode_plain, ragged_requests, shared_pair, tiny_config, tokens_of
from tests.unit.runner.tiny import STRIDE
from tests.unit.verification.drafts import VOCABULARY, gap_nats, random_case, rank

INF = float("inf")
EOS = 3


def budget_rule(budget: float = 0.1, beta: int = 5, tau: float = 3.0, eos: tuple[int, ...] = ()) -> BudgetVerification:
    return BudgetVerification(budget, beta, tau, eos)


# -------------------------------------------------------------------- one iteration

GAPS = st.lists(st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0, 3.0, INF]), min_size=3, max_size=3)
"""With prices that are powers of two every worth is exact, so that equals are equal."""


def best_prefixes(gaps: list[list[float]], price: float) -> list[int]:
    """Of each row the longest among those whose worth is highest."""
    chosen = []
    for row in gaps:
        worth = {a: a - price * sum(row[:a]) for a in range(len(row) + 1) if sum(row[:a]) < INF}
        chosen.append(max(a for a in worth if worth[a] == max(worth.values())))
    return chosen


def choose(gaps: list[list[float]], price: float, balance: float) -> tuple[list[int], float]:
    accepted_B, spent = BudgetVerification._choose(torch.tensor(gaps).cumsum(-1), price, balance)
    return accepted_B.tolist(), spent


@given(st.lists(GAPS, min_size=1, max_size=4), st.sampled_from([0.5, 1.0, 2.0, 4.0]))
def test_with_money_enough_each_row_takes_its_best_prefix(gaps: list[list[float]], price: float) -> None:
    accepted, spent = choose(gaps, price, balance=1000.0)
    assert accepted == best_prefixes(gaps, price)
    assert spent == sum(sum(row[:a]) for row, a in zip(gaps, accepted, strict=True))


@given(
    st.lists(GAPS, min_size=1, max_size=3), st.sampled_from([0.5, 2.0]), st.sampled_from([-1.0, 0.0, 0.25, 1.0, 2.5])
)
def test_no_affordable_choice_is_worth_more_at_the_price_that_is_paid(
    gaps: list[list[float]], price: float, balance: float
) -> None:
    """Over every combination of prefixes that costs no more; and what is free is always taken."""
    accepted, spent = choose(gaps, price, balance)
    assert spent <= max(balance, 0.0)
    prefixes = range(len(gaps[0]) + 1)
    gained = sum(accepted)
    for other in product(prefixes, repeat=len(gaps)):
        cost = sum(sum(row[:a]) for row, a in zip(gaps, other, strict=True))
        assert cost > spent or sum(other) <= gained
    free = [next((a for a in prefixes[:-1] if row[a] > 0), len(row)) for row in gaps]
    assert all(a >= least for a, least in zip(accepted, free, strict=True))


@pytest.mark.parametrize("seed", range(6))
def test_gaps_are_those_of_the_verifier_within_beta_and_tau(seed: int) -> None:
    """With money without end a row takes every token that may be accepted at all, and no further."""
    rule = budget_rule(budget=1e9, beta=4, tau=1.5)
    rule.price, rule.tokens = 1e-9, 1
    draft, logits_BTV = random_case(seed, near=0.3)
    verdict = rule.verify(draft, Logits.rectangle(logits_BTV))
    spent = 0.0
    for row, tokens in enumerate(draft.tokens_BK.tolist()):
        allowed = 0
        while allowed < int(draft.lengths_B[row]):
            logits_V, token = logits_BTV[row, allowed], tokens[allowed]
            if rank(logits_V, token) >= 4 or gap_nats(logits_V, token) > 1.5:
                break
            spent += gap_nats(logits_V, token)
            allowed += 1
        assert int(verdict.accepted_B[row]) == allowed
        assert int(verdict.next_B[row]) == int(logits_BTV[row, allowed].argmax())
    assert rule.spent_nats == pytest.approx(spent, abs=1e-4)
    assert spent > 0
    assert rule.tokens == 1 + int(verdict.accepted_B.sum()) + len(draft.tokens_BK)
    assert (verdict.tau_BK == 1.5).all()


def test_the_first_iteration_has_nothing_to_spend() -> None:
    draft, logits_BTV = random_case(0, near=0.5)
    ours, exact = (
        budget_rule(budget=100.0).verify(draft, Logits.rectangle(logits_BTV)),
        ExactVerification().verify(draft, Logits.rectangle(logits_BTV)),
    )
    assert ours.accepted_B.tolist() == exact.accepted_B.tolist()
    assert ours.next_B.tolist() == exact.next_B.tolist()


def test_plain_iterations_earn_what_drafts_may_spend() -> None:
    rule, (draft, logits_BTV) = budget_rule(budget=0.5), random_case(1, longest=0)
    verdict = rule.verify(draft, Logits.rectangle(logits_BTV))
    assert verdict.accepted_B.tolist() == [0] * 40
    assert verdict.next_B.tolist() == logits_BTV[:, 0].argmax(-1).tolist()
    assert (rule.tokens, rule.spent_nats) == (40, 0.0)


def one_row(tokens: list[int], gaps: list[float]) -> tuple[Draft, Logits]:
    """A draft with these gaps; the verifier's own token is 0 throughout."""
    logits_BTV = torch.full((1, len(tokens) + 1, VOCABULARY), -50.0)
    logits_BTV[..., 0] = 0.0
    for j, (token, gap) in enumerate(zip(tokens, gaps, strict=True)):
        logits_BTV[0, j, token] = -gap
    tokens_BK = torch.tensor([tokens])
    confidence_BK = torch.full((1, len(tokens)), 0.5)
    draft = Draft(tokens_BK, torch.tensor([len(tokens)]), confidence_BK, torch.zeros(1, len(tokens), 3))
    return draft, Logits.rectangle(logits_BTV)


@pytest.mark.parametrize(
    ("tokens", "gaps", "emitted", "spent"),
    [
        ([1, 0], [0.5, 0.0], 3, 0.5),  # two accepted and the verifier's own
        ([1, EOS], [0.5, 0.25], 2, 0.75),  # the end takes the place of the verifier's own
        ([EOS, 1], [0.5, 0.25], 1, 0.5),  # what was drafted after the end is never emitted
        ([EOS, 0], [0.5, 0.0], 1, 0.5),
    ],
)
def test_only_tokens_that_come_out_earn_and_cost(
    tokens: list[int], gaps: list[float], emitted: int, spent: float
) -> None:
    rule = budget_rule(budget=1.0, eos=(EOS,))
    rule.tokens, rule.price = 100, 0.01
    rule.verify(*one_row(tokens, gaps))
    assert rule.tokens - 100 == emitted
    assert rule.spent_nats == pytest.approx(spent)


@settings(max_examples=40)
@given(st.floats(0.005, 2.0), st.integers(0, 10**6), st.floats(0.0, 1.0))
def test_the_account_is_never_overdrawn(budget: float, seed: int, near: float) -> None:
    """By the gaps as they are defined, not by the rule's own books."""
    rule, spent, tokens = budget_rule(budget, beta=12, tau=50.0), 0.0, 0
    for step in range(12):
        draft, logits_BTV = random_case(seed + step, rows=4, longest=3, near=near)
        verdict = rule.verify(draft, Logits.rectangle(logits_BTV))
        for row, count in enumerate(verdict.accepted_B.tolist()):
            assert count <= int(draft.lengths_B[row])
            spent += sum(gap_nats(logits_BTV[row, j], int(draft.tokens_BK[row, j])) for j in range(count))
            tokens += count + 1
        assert spent <= budget * tokens + 1e-4
        assert rule.tokens == tokens
        assert rule.spent_nats == pytest.approx(spent, abs=1e-4)


# -------------------------------------------------------------------- in an engine


@pytest.fixture
def always_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every iteration drafts as much as it can, whatever the machine."""

    def plan(policy: GoodputPolicy, rows: int) -> Rule:
        return Rule.always(policy.max_draft_tokens)

    monkeypatch.setattr(GoodputPolicy, "plan", plan)


def budget_config(budget: float, **sections: dict[str, Any]) -> Config:
    rule = {"kind": "budget", "budget_nats_per_token": budget, "beta": 20, "tau": 20.0}
    drafter = {"max_draft_tokens": 3}
    wide: dict[str, dict[str, Any]] = {"policy": {"kind": "goodput"}, "verification": rule, "drafter": drafter}
    return tiny_config(**{**wide, **sections})


def spend(engine: Engine, budget: float) -> dict[int, list[int]]:
    """Decode to the end; the mean gap of all tokens so far is checked after every iteration."""
    outputs: dict[int, list[int]] = {}
    gap_of_finished, tokens_of_finished = 0.0, 0
    while engine.pending:
        for result in engine.step():
            outputs[result.key] = result.token_ids.tolist()
            assert result.tokens is not None
            assert result.mean_gap_nats == pytest.approx(result.tokens.gap_nats.mean(), abs=1e-5)
            gap_of_finished += float(result.tokens.gap_nats.sum())
            tokens_of_finished += result.num_output_tokens
        state, live = engine.state, engine._rows.live
        gap = gap_of_finished + float(state.gap_sum[:live].sum())
        tokens = tokens_of_finished + int((state.lengths - state.prompt_lengths)[:live].sum())
        assert gap <= budget * tokens + 1e-4
        assert isinstance(engine.verification, BudgetVerification)
        assert engine.verification.tokens == tokens
        assert engine.verification.spent_nats == pytest.approx(gap, abs=1e-4)
    return outputs


def ended_inside_windows(family: str) -> tuple[Pair, list[Request]]:
    """Rows whose prompts hold much of what the model says, and an end of sequence that some of them reach."""
    sources = [[(first + STRIDE * i) % 64 for i in range(9)] + [first] for first in range(3, 60, 5)]
    requests = [Request(key, source, 16) for key, source in enumerate(sources)]
    plain = tokens_of(decode_plain(shared_pair(family), requests))
    return replace(shared_pair(family), constraints=Constraints(eos_token_ids=(plain[0][4],))), requests


@pytest.mark.usefixtures("always_drafts")
@pytest.mark.parametrize("family", ["marian", "llama"])
@pytest.mark.parametrize("kind", ["model", "lookup"])
@pytest.mark.parametrize("budget", [0.01, 0.1, 1.0])
def test_the_mean_gap_stays_within_the_budget(budget: float, kind: str, family: str) -> None:
    """At every moment of a run, with ends of sequence inside windows."""
    pair, requests = ended_inside_windows(family)
    [eos] = pair.constraints.eos_token_ids
    drafter = {"kind": kind, "max_draft_tokens": 3}
    engine = Engine(pair, budget_config(budget, drafter=drafter, telemetry={"level": "token"}))
    engine.submit(requests)
    outputs = spend(engine, budget)
    assert any(row[-1] == eos for row in outputs.values())
    assert all(eos not in row[:-1] for row in outputs.values())
    assert engine.stats.accepted_tokens > 0


@pytest.mark.usefixtures("always_drafts")
def test_a_larger_budget_buys_more_tokens_per_iteration() -> None:
    pair, rates, gaps = shared_pair("marian"), [], []
    requests = ragged_requests(60, seed=22)
    for budget in (0.0, 0.02, 0.15):
        engine = Engine(pair, budget_config(budget))
        total = sum(result.mean_gap_nats * result.num_output_tokens for result in engine.decode(requests))
        rates.append(engine.stats.tokens_per_iteration)
        gaps.append(total / engine.stats.output_tokens)
    assert rates == sorted(set(rates))
    assert gaps[0] == 0
    assert 0.01 < gaps[1] <= 0.02, "the budget is there to be spent"


# -------------------------------------------------------------------- configuration


def test_a_budget_makes_the_rule_and_the_claim_lossy() -> None:
    config = budget_config(0.05)
    rule = build_verification(config, (EOS,))
    assert isinstance(rule, BudgetVerification)
    assert (rule.budget, rule.beta, rule.tau) == (0.05, 20, 20.0)
    assert config.lossless == "lossy"


@pytest.mark.parametrize("budget", [0.0, -0.1])
def test_a_budget_of_nothing_is_refused(budget: float) -> None:
    with pytest.raises(ConfigError, match=r"verification\.budget_nats_per_token: must be greater than 0 nats"):
        check(budget_config(budget))


def test_the_key_of_before_says_what_it_is_now() -> None:
    with pytest.raises(ConfigError, match=r"unknown key\. It is now verification\.budget_nats_per_token, for verif"):
        from_dict({"policy": {"quality_budget_nats_per_token": 0.02}})


def test_whatever_the_policy_a_budget_may_be_spent() -> None:
    pair, requests = shared_pair("marian"), ragged_requests(12, seed=3)
    engine = Engine(pair, budget_config(0.1, policy={"kind": "fixed"}))
    engine.submit(requests)
    spend(engine, 0.1)
    assert isinstance(engine.verification, BudgetVerification)
    assert engine.verification.spent_nats > 0


def test_the_rules_kind_alone_decides_without_a_budget() -> None:
    for kind in ("relaxed", "typical", "sampling"):
        config = Config(verification=replace(VerificationConfig(), kind=kind))
        assert not isinstance(build_verification(config, ()), BudgetVerification)
