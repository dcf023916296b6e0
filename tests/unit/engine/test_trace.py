"""What is recorded about tokens, against the models run directly; and that recording changes nothing."""

import copy
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmasd.confidence.scores import score
from cmasd.core import Draft, Logits, Request, Result, Verdict
from cmasd.engine import Pair
from cmasd.engine.commit import Committer
from cmasd.engine.slots import NewRow, SlotShape, SlotState
from cmasd.engine.trace import trace
from cmasd.kernels import kernels
from cmasd.signals import FROM_DRAFT
from tests.unit.engine.pairs import decode, decode_plain, ragged_requests, shared_pair, tiny_config, tokens_of

FIXED: dict[str, Any] = {"policy": {"kind": "fixed"}, "drafter": {"max_draft_tokens": 3}}
LOSSY: dict[str, Any] = {"kind": "relaxed", "tau": 2.0, "beta": 5}


@torch.no_grad()
def direct_logits(pair: Pair, model: Any, request: Request, result: Result) -> torch.Tensor:
    """(tokens, V) logits before each output token, from one forward of the model."""
    output = result.token_ids.tolist()
    if pair.is_encoder_decoder:
        tokens = torch.tensor([pair.decoder_start + output[:-1]])
        logits = model(input_ids=torch.tensor([request.source]), decoder_input_ids=tokens).logits
    else:
        logits = model(input_ids=torch.tensor([request.source + output[:-1]])).logits
    return cast(torch.Tensor, logits[0, -len(output) :])


TREES = {"tree_nodes": 7, "tree_branching": 3}
WAYS: list[dict[str, Any]] = [{}, TREES, {"kind": "parallel"}, {"kind": "parallel", **TREES}]


@pytest.mark.parametrize("way", WAYS, ids=["model", "model trees", "parallel", "parallel trees"])
@pytest.mark.parametrize("graphs", ["off", "on"])
@pytest.mark.parametrize("kind", ["exact", "sampling"])
def test_each_drafted_token_has_its_place_and_its_log_probability(way: dict[str, Any], graphs: str, kind: str) -> None:
    """With graphs by tensor operations, else by kernels."""
    pair, requests = shared_pair("marian", "noisy"), ragged_requests(6, seed=5, max_new_tokens=16)
    sections: dict[str, Any] = {"drafter": {"max_draft_tokens": 3, **way}, "engine": {"slots": 4, "graphs": graphs}}
    results = decode(pair, tiny_config(policy={"kind": "fixed"}, verification={"kind": kind}, **sections), requests)
    for request in requests:
        result = results[request.key]
        assert result.tokens is not None
        assert result.iterations is not None
        places = [place for kept in result.iterations.accepted.tolist() for place in (*range(1, kept + 1), 0)]
        assert result.tokens.draft_position.tolist() == places[: len(result.token_ids)]
        own = result.tokens.draft_position == 0
        assert np.isnan(result.tokens.drafter_logprob[own]).all()
        drafted = result.tokens.drafter_logprob[~own]
        assert (drafted <= 1e-6).all()
        if "kind" not in way:
            direct = torch.log_softmax(direct_logits(pair, pair.drafter, request, result), -1)
            chosen = direct.gather(1, torch.from_numpy(result.token_ids).long()[:, None])[:, 0].numpy()
            np.testing.assert_allclose(drafted, chosen[~own], atol=1e-5)
    assert sum(one.num_accepted_tokens for one in results.values()) > 0


@pytest.mark.parametrize("family", ["marian", "t5", "llama", "float32"])
@pytest.mark.parametrize("slots", [2, 8])
def test_token_traces_equal_direct_forwards(family: str, slots: int) -> None:
    pair, requests = shared_pair(family.replace("float32", "marian")), ragged_requests(5, seed=11, max_new_tokens=16)
    if family == "float32":
        models = (copy.deepcopy(model).float() for model in (pair.verifier, cast(Any, pair.drafter)))
        pair = replace(pair, **dict(zip(("verifier", "drafter"), models, strict=True)))
    results = decode(pair, tiny_config(**FIXED, verification=LOSSY, engine={"slots": slots}), requests)
    for request in requests:
        result = results[request.key]
        assert result.tokens is not None
        log_probs = torch.log_softmax(direct_logits(pair, pair.verifier, request, result), -1)
        chosen = log_probs.gather(1, torch.from_numpy(result.token_ids).long()[:, None])[:, 0]
        gap = log_probs.amax(-1) - chosen
        np.testing.assert_allclose(result.tokens.verifier_logprob, chosen, atol=1e-5)
        np.testing.assert_allclose(result.tokens.gap_nats, gap, atol=1e-5)
        assert result.mean_gap_nats == pytest.approx(gap.mean().item(), abs=1e-5)
        scores = score(direct_logits(pair, pair.drafter, request, result))
        accepted = result.tokens.source == FROM_DRAFT
        for name in ("entropy", "margin", "softmax"):
            recorded = getattr(result.tokens, name)
            np.testing.assert_allclose(recorded[accepted], getattr(scores, name)[accepted], atol=1e-5, err_msg=name)
            assert np.isnan(recorded[~accepted]).all()
        np.testing.assert_allclose(result.tokens.confidence[accepted], scores.max_prob[accepted], atol=1e-5)
        assert (result.tokens.gap_nats[~accepted] == 0).all()
        assert (result.tokens.gap_nats[accepted] <= 2.0).all()
        assert (result.tokens.tau[accepted] == 2.0).all()
    assert max(result.mean_gap_nats for result in results.values()) > 0, "the rule was not lossy on these rows"


@given(
    rows=st.integers(1, 5),
    drafted=st.integers(0, 4),
    seed=st.integers(0, 10**6),
    record_gaps=st.booleans(),
    level=st.sampled_from(["none", "iteration", "token"]),
    named=st.sampled_from(["nobody", "rows", "tokens"]),
)
def test_in_c_as_in_tensor_operations(
    rows: int, drafted: int, seed: int, record_gaps: bool, level: str, named: str
) -> None:
    if kernels(torch.float32) is None:
        pytest.skip("no C compiler here")
    torch.manual_seed(seed)
    lengths_B = torch.randint(0, drafted + 1, (rows,))
    accepted_B = (torch.rand(rows) * (lengths_B + 1)).long()
    draft = Draft(
        torch.randint(1, 9, (rows, drafted)), lengths_B, torch.rand(rows, drafted), torch.rand(rows, drafted, 3)
    )
    if named == "rows":
        draft = replace(draft, source_B=torch.randint(1, 5, (rows,)))
    elif named == "tokens":
        draft = replace(draft, source_BK=torch.randint(1, 5, (rows, drafted)))
    verdict = Verdict(accepted_B, torch.randint(1, 9, (rows,)), torch.rand(rows, drafted))
    firsts_B1 = torch.nn.functional.pad((lengths_B + 1).cumsum(0), (1, 0))
    values_NV = 5 * torch.randn(int(firsts_B1[-1]), 9)
    values_NV[..., 0] = -torch.inf
    logits = Logits(values_NV, firsts_B1, drafted + 1)
    states = []
    for native in (True, False):
        state = SlotState(SlotShape(rows, rows, 1, 20, 4, 5), level, torch.device("cpu"))
        state.enter(0, [NewRow(row, [2], [3, 4], 15) for row in range(rows)])
        state.lengths[:rows] += torch.arange(rows)
        state.counters[:rows, 0] += torch.arange(rows)
        context = state.context(rows)
        outcome = Committer(state, torch.tensor([1, 8]))(context, draft, verdict)
        with pytest.MonkeyPatch.context() as patch:
            if not native:
                patch.setattr("cmasd.engine.trace.kernels_for", lambda tensor: None)
            trace(state, context, outcome, logits, record_gaps)
        states.append(state)
    in_c, tensors = states
    torch.testing.assert_close(in_c.gap_sum, tensors.gap_sum)
    for name in ("token_trace", "iteration_trace"):
        one, other = getattr(in_c, name), getattr(tensors, name)
        assert (one is None) == (other is None)
        for row, count in enumerate(outcome.count_B.tolist() if one is not None else []):
            known = row + (count if name == "token_trace" else 1)
            torch.testing.assert_close(one[row, :known], other[row, :known], equal_nan=True)


def test_the_first_rejected_token_is_described() -> None:
    """Rejected tokens are not in the output, but their scores are the drafter's after the row so far."""
    pair, requests = shared_pair("marian"), ragged_requests(4, seed=12)
    rejections = 0
    for request, result in zip(requests, decode(pair, tiny_config(**FIXED), requests).values(), strict=False):
        result = decode(pair, tiny_config(**FIXED), [request])[request.key]
        scores = score(direct_logits(pair, pair.drafter, request, result))
        assert result.iterations is not None
        at = 0
        for step, (drafted, accepted) in enumerate(
            zip(result.iterations.draft_length, result.iterations.accepted, strict=True)
        ):
            for name, direct in (("confidence", "max_prob"), ("entropy",) * 2, ("margin",) * 2, ("softmax",) * 2):
                value = getattr(result.iterations, f"rejected_{name}")[step]
                if accepted == drafted:
                    assert np.isnan(value)
                else:
                    assert value == pytest.approx(getattr(scores, direct)[at + accepted].item(), abs=1e-5)
                    rejections += 1
            at += accepted + 1
    assert rejections > 0


@pytest.mark.parametrize("kind", ["model", "lookup"])
@pytest.mark.parametrize("verification", ["exact", "relaxed"])
def test_levels_record_less_but_decode_the_same(kind: str, verification: str) -> None:
    pair, requests = shared_pair("marian"), ragged_requests(5, seed=13)
    sections = {"policy": {"kind": "fixed"}, "drafter": {"kind": kind}, "verification": {**LOSSY, "kind": verification}}
    none, iteration, token = (
        decode(pair, tiny_config(**sections, telemetry={"level": level}), requests)
        for level in ("none", "iteration", "token")
    )
    assert tokens_of(none) == tokens_of(iteration) == tokens_of(token)
    for key in none:
        assert none[key].iterations is None
        assert none[key].tokens is None
        assert iteration[key].tokens is None
        assert iteration[key].iterations is not None
        assert token[key].tokens is not None
        for name in ("num_iterations", "num_drafted_tokens", "num_accepted_tokens", "mean_gap_nats"):
            assert getattr(none[key], name) == getattr(iteration[key], name) == getattr(token[key], name)


def test_exact_decoding_has_no_gap() -> None:
    pair, requests = shared_pair("marian"), ragged_requests(5, seed=14)
    for config in (tiny_config(**FIXED), tiny_config(policy={"kind": "plain"})):
        for result in decode(pair, config, requests).values():
            assert result.mean_gap_nats == 0
            assert result.tokens is not None
            assert (result.tokens.gap_nats == 0).all()
            assert (result.tokens.tau == 0).all()


def test_plain_decoding_traces_the_verifier_alone() -> None:
    result = decode_plain(shared_pair("marian"), [Request(0, [5, 6, 7], 10)])[0]
    assert result.tokens is not None
    assert result.iterations is not None
    assert result.tokens.source.tolist() == [0] * 10
    assert np.isnan(result.tokens.confidence).all()
    assert result.iterations.draft_length.tolist() == [0] * 10
    assert np.isnan(result.iterations.rejected_confidence).all()
    assert np.isnan(result.mean_confidence)


def test_sampled_tokens_have_a_gap_even_without_drafts() -> None:
    config = tiny_config(policy={"kind": "plain"}, verification={"kind": "sampling"}, telemetry={"level": "none"})
    results = decode(shared_pair("marian"), config, ragged_requests(4, seed=15))
    assert max(result.mean_gap_nats for result in results.values()) > 0


def test_mean_confidence_is_over_the_tokens_sent() -> None:
    pair, requests = shared_pair("marian"), ragged_requests(4, seed=16)
    for result in decode(pair, tiny_config(**FIXED), requests).values():
        assert result.tokens is not None
        assert result.iterations is not None
        if result.num_drafted_tokens == 0:
            assert np.isnan(result.mean_confidence)
            continue
        known = [*result.tokens.confidence, *result.iterations.rejected_confidence]
        low, high = np.nanmin(known), np.nanmax(known)
        assert 0 < result.mean_confidence < 1
        if result.num_drafted_tokens == result.num_accepted_tokens:
            assert low <= result.mean_confidence <= high
            assert result.mean_confidence == pytest.approx(np.nanmean(result.tokens.confidence), abs=1e-5)


def test_modulated_tolerance_follows_the_confidence_of_each_token() -> None:
    pair, requests = shared_pair("marian"), ragged_requests(5, seed=17)
    for form, sign in (("prose", 1), ("printed", -1)):
        rule = {"kind": "modulated", "tau_base": 0.25, "gamma": 2.0, "tau_form": form}
        accepted_tokens = 0
        for result in decode(pair, tiny_config(**FIXED, verification=rule), requests).values():
            trace = result.tokens
            assert trace is not None
            accepted = trace.source == FROM_DRAFT
            accepted_tokens += int(accepted.sum())
            np.testing.assert_allclose(
                trace.tau[accepted], 0.25 + 2 * ((sign < 0) + sign * trace.confidence[accepted]), atol=1e-5
            )
            assert (trace.gap_nats[accepted] <= trace.tau[accepted]).all()
        assert accepted_tokens > 0


@pytest.mark.parametrize("family", ["marian", "llama"])
@pytest.mark.parametrize("policy", ["fixed", "plain"])
def test_the_likeliest_tokens_are_those_of_direct_forwards(family: str, policy: str) -> None:
    pair, requests = shared_pair(family), ragged_requests(5, seed=12, max_new_tokens=12)
    config = tiny_config(policy={"kind": policy}, engine={"slots": 2}, telemetry={"level": "none", "teacher_top_k": 3})
    results = decode(pair, config, requests)
    for request in requests:
        result = results[request.key]
        assert result.teaching is not None
        best = torch.log_softmax(direct_logits(pair, pair.verifier, request, result), -1).topk(3, dim=-1)
        np.testing.assert_array_equal(result.teaching.ids_Nk, best.indices)
        np.testing.assert_allclose(result.teaching.logprobs_Nk, best.values, atol=1e-5)
        np.testing.assert_array_equal(result.teaching.ids_Nk[:, 0], result.token_ids)
