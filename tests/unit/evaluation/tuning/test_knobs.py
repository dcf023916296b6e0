"""Whatever is proposed is a configuration that loads, and differs in the knobs alone."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmasd.config.rules import check
from cmasd.evaluation.tuning.knobs import ALPHA, FORMS, NATS, Knobs, simplex, starts, suggest
from tests.unit.engine.pairs import tiny_config

CONFIG = tiny_config(
    drafter={"max_draft_tokens": 9, "min_draft_tokens": 3},
    policy={"kind": "goodput", "alpha": 7.0},
    verification={"tau_base": 0.52, "gamma": 5.0, "beta": 7},
    confidence={"weights": [0.5, 0.25, 0.25], "margin_form": "printed"},
)


class Drawn:
    """A trial that proposes what hypothesis draws, within the ranges that it is asked for."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return int(self.data.draw(st.integers(low, high)))

    def suggest_float(self, name: str, low: float, high: float, step: float | None = None) -> float:
        if step is None:
            return float(self.data.draw(st.floats(low, high)))
        return float(low + step * self.data.draw(st.integers(0, round((high - low) / step))))

    def suggest_categorical(self, name: str, choices: tuple[str, ...]) -> Any:
        return self.data.draw(st.sampled_from(choices))


@given(data=st.data(), is_lossless=st.booleans(), most=st.integers(1, 8))
def test_proposals_are_configurations(data: st.DataObject, is_lossless: bool, most: int) -> None:
    knobs = suggest(Drawn(data), most, is_lossless)
    found = knobs.configured(CONFIG)
    check(found)
    assert knobs.is_lossless == is_lossless
    assert found.lossless == ("exact" if is_lossless else "lossy")
    assert found.drafter.max_draft_tokens == knobs.max_draft_tokens <= most
    assert (found.policy.kind, found.confidence.kind) == ("paper", "ensemble")
    same = replace(
        found,
        drafter=replace(found.drafter, max_draft_tokens=9, min_draft_tokens=3),
        policy=CONFIG.policy,
        verification=CONFIG.verification,
        confidence=replace(found.confidence, kind="auto", weights=[0.5, 0.25, 0.25]),
    )
    assert same == CONFIG
    assert found.verification.beta == 7


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_weights_are_shares(parts: list[float]) -> None:
    found = simplex(parts)
    assert min(found) >= 0
    assert sum(found) == pytest.approx(1, abs=1e-9)
    if sum(parts) > 0.01:
        assert found == pytest.approx([part / sum(parts) for part in parts], abs=0.003)


def test_the_search_begins_with_what_the_user_has_as_far_as_it_is_in_range() -> None:
    [first] = starts(CONFIG, most=6, is_lossless=True)
    assert first == {"max_draft_tokens": 6, "alpha": ALPHA[1], "entropy": 0.5, "margin": 0.25, "softmax": 0.25}
    both = starts(CONFIG, most=9, is_lossless=False)
    assert [one["tau_form"] for one in both] == list(FORMS)
    assert {(one["tau_base"], one["gamma"], one["max_draft_tokens"]) for one in both} == {(0.5, NATS[1], 9)}
    trial: Any = SimpleNamespace(
        suggest_int=lambda name, *bounds: both[1][name],
        suggest_float=lambda name, *bounds, **step: both[1][name],
        suggest_categorical=lambda name, choices: both[1][name],
    )
    assert suggest(trial, 9, is_lossless=False) == Knobs(9, 3.0, (0.5, 0.25, 0.25), 0.5, 3.0, "printed")
