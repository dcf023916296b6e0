"""The audit: exact decoding has no algorithmic difference, near-ties are told from faults, planted faults are found."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from cmasd.config.tree import Config
from cmasd.core import Request
from cmasd.engine import Engine, Pair
from cmasd.engine.slots import SlotState
from cmasd.evaluation.quality.audit import ALGORITHMIC, NEAR_TIE, Divergence, decode_plainly, divergences
from cmasd.generation.constraints import Constraints
from cmasd.verification.exact import ExactVerification
from tests.unit.engine.pairs import decode, ragged_requests, shared_pair, tiny_config, tokens_of

FAMILIES = ["marian", "llama", "t5"]
SECTIONS: dict[str, dict[str, Any]] = {
    "policy": {"kind": "fixed"},
    "drafter": {"max_draft_tokens": 3},
    "engine": {"slots": 3},
}


def audited(pair: Pair, config: Config, requests: list[Request]) -> list[Divergence]:
    outputs = tokens_of(decode(pair, config, requests))
    return divergences(pair, config, requests, decode_plainly(pair, config, requests), outputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_decoding_has_no_difference(family: str) -> None:
    assert audited(shared_pair(family, "noisy"), tiny_config(**SECTIONS), ragged_requests(9, seed=1)) == []


def accept_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """An off-by-one in acceptance."""
    real = ExactVerification.verify

    def verify(self: ExactVerification, draft: Any, logits: Any) -> Any:
        verdict = real(self, draft, logits)
        return replace(verdict, accepted_B=(verdict.accepted_B + 1).minimum(draft.lengths_B))

    monkeypatch.setattr(ExactVerification, "verify", verify)


def keep_what_was_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """No roll-back: after a draft the verifier's cache goes on behind another token than the row's last one."""
    real, drafted = SlotState.window, [False]

    def window(self: SlotState, draft: Any) -> Any:
        shown, before = real(self, draft), drafted[0]
        drafted[0] = draft.tokens_BK.shape[1] > 0
        if before:
            shown.tokens_N[shown.firsts_R1[:-1]] = (shown.tokens_N[shown.firsts_R1[:-1]] + 1) % 64
        return shown

    monkeypatch.setattr(SlotState, "window", window)


@pytest.mark.parametrize("plant", [accept_one_more, keep_what_was_rejected])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_planted_fault_is_found(
    family: str, plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, config, requests = shared_pair(family, "noisy"), tiny_config(**SECTIONS), ragged_requests(40, seed=1)
    plain = decode_plainly(pair, config, requests)
    with monkeypatch.context() as patch:
        plant(patch)
        outputs = tokens_of(decode(pair, config, requests))
    found = divergences(pair, config, requests, plain, outputs)
    assert found
    assert {one.cause for one in found} == {ALGORITHMIC}
    for one in found:
        assert outputs[one.key][: one.position] == plain[one.key][: one.position]
        assert one.gap_nats > 1e-4


def test_two_logits_that_nearly_tie_are_told_from_a_fault() -> None:
    """Two output rows of a model that differ by a rounding: either token may win; a third may not."""
    pair, requests = shared_pair("marian"), [Request(0, [5, 6, 7], 6)]
    config = tiny_config(**SECTIONS)
    [plain] = decode_plainly(pair, config, requests).values()
    token, other, third = plain[2], next(t for t in range(4, 64) if t not in plain), 63 if 63 not in plain else 62
    model: Any = pair.verifier
    weight, kept = model.lm_head.weight, model.lm_head.weight.detach().clone()
    bias = model.final_logits_bias.clone()
    try:
        with torch.no_grad():
            weight[other] = weight[token] * (1 - 1e-14)
            model.final_logits_bias[0, other] = bias[0, token]
        plain = decode_plainly(pair, config, requests)[0]
        at = plain.index(token)
        tied = divergences(pair, config, requests, {0: plain}, {0: [*plain[:at], other, *plain[at + 1 :]]})
        wrong = divergences(pair, config, requests, {0: plain}, {0: [*plain[:at], third, *plain[at + 1 :]]})
    finally:
        with torch.no_grad():
            weight.copy_(kept)
            model.final_logits_bias.copy_(bias)
    assert [(one.position, one.plain_token, one.token, one.cause) for one in tied] == [(at, token, other, NEAR_TIE)]
    assert [one.cause for one in wrong] == [ALGORITHMIC]


def test_a_row_that_ends_elsewhere_is_a_fault() -> None:
    pair, config, requests = shared_pair("marian"), tiny_config(**SECTIONS), [Request(0, [5, 6, 7], 6)]
    plain = decode_plainly(pair, config, requests)
    [one] = divergences(pair, config, requests, plain, {0: plain[0][:4]})
    assert (one.position, one.plain_token, one.token, one.cause) == (4, plain[0][4], None, ALGORITHMIC)
    [one] = divergences(pair, config, requests, {0: plain[0][:4]}, plain)
    assert (one.position, one.plain_token, one.token) == (4, None, plain[0][4])


def test_the_checkpoints_rules_are_part_of_it() -> None:
    """A token that they forbid can be no near-tie."""
    rules = Constraints(no_repeat_ngram_size=1)
    pair, config, requests = shared_pair("marian", constraints=rules), tiny_config(**SECTIONS), [Request(0, [5, 6], 6)]
    plain = decode_plainly(pair, config, requests)
    [one] = divergences(pair, config, requests, plain, {0: [*plain[0][:3], plain[0][0], *plain[0][4:]]})
    assert one.cause == ALGORITHMIC
    assert one.gap_nats == float("inf")
    assert isinstance(Engine(pair, config).iterations.constraints, Constraints)
