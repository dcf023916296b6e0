"""The parallel drafter: what it knows of a row, fewer queries give the same first tokens, policies cut its drafts."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from cmasd.confidence import build_confidence
from cmasd.config.speculation import ConfidenceConfig
from cmasd.core import Draft
from cmasd.drafters import Context, ParallelDrafter
from cmasd.drafters.choice import Choice
from cmasd.engine import Engine
from cmasd.kernels import kernels_for
from cmasd.models.families import ANY_WORD, Words
from cmasd.models.parallel_network import ParallelModel, ParallelNetwork
from cmasd.policies import Rule
from cmasd.runner import load_runner, parallel_runner
from cmasd.runner.load import parallel_shape
from cmasd.runner.parallel_runner import ParallelRunner
from tests.unit.engine.pairs import QUERIES, shared_model, shared_pair, shared_parallel, tiny_config

LENGTH, ROWS = 24, 3
SOURCES = [[5, 6, 7], [9, 10], [11, 3, 4, 8]]
ROOM = torch.full((ROWS,), QUERIES)
FAMILIES = ["marian", "t5", "llama"]


ALL = Rule.always(QUERIES)


def drafter_of(
    family: str,
    eos: tuple[int, ...] = (),
    temperature: float | None = None,
    network: ParallelNetwork | None = None,
    words: Words = ANY_WORD,
) -> ParallelDrafter:
    """Three rows prefilled."""
    verifier = load_runner(shared_model(family), slots=4, max_length=LENGTH, max_source_length=8)
    choose = Choice(temperature, 0, words.tensor(verifier.device), verifier.vocabulary_size, verifier.device)
    model = ParallelModel(network or shared_parallel(family), shared_model(family), words)
    eos_ids = torch.tensor(eos, dtype=torch.int64)
    runner = ParallelRunner(model, verifier, ids_S=words.tensor(verifier.device))
    kind = "head" if model.shape.has_confidence else "max_prob"
    drafter = ParallelDrafter(runner, QUERIES, build_confidence(ConfidenceConfig(), kind), choose, eos_ids)
    take_up(drafter, list(range(ROWS)), SOURCES)
    return drafter


def take_up(drafter: ParallelDrafter, slots: list[int], sources: list[list[int]]) -> None:
    drafter.runner.verifier.prefill(slots, sources)
    drafter.prefill(slots, sources)


def tokens_of_rows(family: str) -> Tensor:
    """(B, L): the prompt or the start, then made-up tokens."""
    tokens_BL = (torch.arange(LENGTH) * 7 % 61 + 1)[None].repeat(ROWS, 1)
    for row, source in enumerate(SOURCES):
        prompt = source if family == "llama" else [0]
        tokens_BL[row, : len(prompt)] = torch.tensor(prompt)
    return tokens_BL


def known(tokens_BL: Tensor, lengths_B: Tensor) -> Context:
    ones_B = torch.ones_like(lengths_B)
    return Context(tokens_BL, lengths_B, ones_B, ones_B * 20, torch.empty(len(lengths_B), 0, dtype=torch.int64))


def after(drafter: ParallelDrafter, family: str, *windows: list[int], drafts: bool = False) -> Context:
    """The rows once the verifier has run windows, of which it accepted so many tokens; the others were other tokens.

    `drafts` says whether the drafter was asked before each window.
    """
    tokens_BL = tokens_of_rows(family)
    lengths_B = torch.tensor([len(source) if family == "llama" else 1 for source in SOURCES])
    for accepted in windows:
        accepted_B, steps_T = torch.tensor(accepted), torch.arange(QUERIES + 1)
        if drafts:
            drafter.draft(known(tokens_BL, lengths_B), ROOM, ALL)
        window_BT = tokens_BL.gather(1, lengths_B[:, None] - 1 + steps_T)
        window_BT = torch.where(steps_T > accepted_B[:, None], 60, window_BT)
        drafter.runner.verifier.forward(window_BT, lengths_B - 1)
        drafter.commit(known(tokens_BL, lengths_B), accepted_B)
        lengths_B = lengths_B + accepted_B + 1
    return known(tokens_BL, lengths_B)


def assert_same(draft: Draft, other: Draft) -> None:
    assert torch.equal(draft.tokens_BK, other.tokens_BK)
    torch.testing.assert_close(draft.confidence_BK, other.confidence_BK)
    torch.testing.assert_close(draft.components_BK3, other.components_BK3)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_fewer_queries_give_the_same_first_tokens(family: str) -> None:
    drafter = drafter_of(family)
    rows = after(drafter, family, [2, 3, 4])
    whole = drafter.draft(rows, ROOM, ALL)
    for most in range(1, QUERIES):
        part = drafter.draft(rows, torch.full((ROWS,), most), ALL)
        assert torch.equal(part.tokens_BK, whole.tokens_BK[:, :most])
        torch.testing.assert_close(part.confidence_BK, whole.confidence_BK[:, :most])
        assert part.lengths_B.tolist() == [most] * ROWS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "shape",
    [{}, {"rank": 0}, {"has_confidence": False}, {"layers": 2, "norm_first": True}, {"layers": 0}],
    ids=["whole", "no Markov head", "no confidence head", "two layers, norms first", "heads alone"],
)
@pytest.mark.parametrize("shortlist", [None, (9, 3, 60, 1, 33, 17, 8, 2, 40)])
@torch.no_grad()
def test_one_call_drafts_what_tensor_operations_do(
    family: str, shape: dict[str, Any], shortlist: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"heads": 4, "head_width": 8, "queries": QUERIES, "feed_forward": 16, "rank": 4, **shape}
    network = ParallelNetwork(replace(parallel_shape(shared_model(family)), **sizes)).double().requires_grad_(False)
    for weight in network.parameters():
        weight.copy_(torch.randn_like(weight) * 0.3)
    given: dict[str, Any] = {"network": network, "words": Words(shortlist=shortlist)}
    native = drafter_of(family, **given)
    monkeypatch.setattr(parallel_runner, "packed_drafter", lambda model, ids_S: None)
    stock = drafter_of(family, **given)
    if kernels_for(network.start) is None:
        pytest.skip("there are no kernels here")
    assert (native.runner.is_one_call, stock.runner.is_one_call) == (True, False)
    for windows in ([[0, 0, 0]], [[0, 3, 1], [4, 0, 2]]):
        rows, same = (after(drafter, family, *windows) for drafter in (native, stock))
        room_B = torch.tensor([QUERIES, 1, 3])
        mine, others = native.draft(rows, room_B, ALL), stock.draft(same, room_B, ALL)
        assert_same(mine, others)
        assert torch.equal(mine.lengths_B, others.lengths_B)
        assert native.caught_up == stock.caught_up
        assert_same(native.draft(rows, ROOM, ALL), stock.draft(same, ROOM, ALL))
        for drafter in (native, stock):
            take_up(drafter, list(range(ROWS)), SOURCES)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_catching_up_late_is_drafting_all_along(family: str) -> None:
    windows = ([2, 0, 4], [0, 3, 1], [5, 1, 0])
    along, late = (drafter_of(family) for _ in range(2))
    rows = after(along, family, *windows, drafts=True)
    draft = along.draft(rows, ROOM, ALL)
    assert along.caught_up
    assert_same(draft, late.draft(after(late, family, *windows), ROOM, ALL))
    assert not late.caught_up
    late.draft(rows, ROOM, ALL)
    assert late.caught_up


@torch.no_grad()
def test_what_was_rejected_leaves_no_trace() -> None:
    """As if all tokens had been the verifier's own."""
    drafted, plain = (drafter_of("llama") for _ in range(2))
    assert_same(
        drafted.draft(after(drafted, "llama", [0, 0, 0], [2, 2, 2], drafts=True), ROOM, ALL),
        plain.draft(after(plain, "llama", [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]), ROOM, ALL),
    )


@torch.no_grad()
def test_a_prompt_is_known_as_output_is() -> None:
    """A prompt that was taken up at once, and one that was fed token by token, are drafted for alike."""
    drafter = drafter_of("llama")
    tokens_BL = torch.tensor([SOURCES[2] + [0] * 9])
    expected = drafter.draft(known(tokens_BL.expand(ROWS, -1), torch.tensor([4, 4, 4])), ROOM, ALL).tokens_BK[2]
    take_up(drafter, [0], [SOURCES[2][:1]])
    for length in range(1, 4):
        drafter.runner.verifier.forward(tokens_BL[:, length - 1 : length], torch.tensor([length - 1]))
        drafter.commit(known(tokens_BL, torch.tensor([length])), torch.tensor([0]))
    assert torch.equal(drafter.draft(known(tokens_BL, torch.tensor([4])), ROOM[:1], ALL).tokens_BK[0], expected)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_rows_move_and_slots_are_used_again(family: str) -> None:
    drafter = drafter_of(family)
    first = drafter.draft(after(drafter, family), ROOM, ALL)
    rows = after(drafter, family, [2, 3, 4])
    expected = drafter.draft(rows, ROOM, ALL)
    for source, target in ((2, 3), (0, 2), (3, 0)):
        drafter.runner.verifier.move(source, target)
        drafter.move(source, target)
    order = [2, 1, 0]
    moved = drafter.draft(known(rows.tokens_BL[order], rows.lengths_B[order]), ROOM, ALL)
    assert torch.equal(moved.tokens_BK, expected.tokens_BK[order])
    take_up(drafter, list(range(ROWS)), SOURCES)
    assert_same(drafter.draft(after(drafter, family), ROOM, ALL), first)


@torch.no_grad()
def test_a_rule_cuts_each_row_where_it_would_have_stopped_drafting_it() -> None:
    drafter = drafter_of("marian")
    rows = after(drafter, "marian", [2, 3, 4])
    whole = drafter.draft(rows, ROOM, ALL)
    survival_BK = whole.confidence_BK.double().cumprod(1)
    least = float(survival_BK[:, 1].median())
    rule = Rule(np.full(QUERIES, least), np.full(QUERIES, least))
    cut = drafter.draft(rows, ROOM, rule)
    assert torch.equal(cut.tokens_BK, whole.tokens_BK)
    assert torch.equal(cut.lengths_B, (survival_BK >= least).sum(1))
    assert len(set(cut.lengths_B.tolist())) > 1, "each row by its own confidence"
    assert torch.equal(cut.drafted_B, whole.lengths_B)


@torch.no_grad()
def test_nothing_is_drafted_behind_an_end_or_beyond_the_room() -> None:
    free = drafter_of("marian")
    rows, room_B = after(free, "marian", [2, 3, 4]), torch.tensor([QUERIES, 2, QUERIES])
    tokens_BK = free.draft(rows, room_B, ALL).tokens_BK
    eos = int(tokens_BK[0, 1])
    drafter = drafter_of("marian", eos=(eos,))
    after(drafter, "marian", [2, 3, 4])
    lengths = drafter.draft(rows, room_B, ALL).lengths_B.tolist()
    first = tokens_BK[0].tolist().index(eos)
    assert lengths[0] == first + 1
    assert lengths[1] <= 2


@torch.no_grad()
def test_sampled_drafts_carry_their_distribution() -> None:
    drafter = drafter_of("marian", temperature=1.0)
    draft = drafter.draft(after(drafter, "marian", [2, 3, 4]), ROOM, ALL)
    assert draft.probs_BKV is not None
    assert draft.probs_BKV.shape == (ROWS, QUERIES, drafter.runner.verifier.vocabulary_size)
    torch.testing.assert_close(draft.probs_BKV.sum(-1), torch.ones(ROWS, QUERIES, dtype=torch.float32))


def test_confidence_is_of_the_logits_unless_the_head_is_asked_for() -> None:
    def first_confidence(kind: str) -> Tensor:
        config = tiny_config(
            policy={"kind": "fixed"}, drafter={"kind": "parallel", "max_draft_tokens": 2}, confidence={"kind": kind}
        )
        engine = Engine(shared_pair("marian"), config)
        drafter = cast(ParallelDrafter, engine.drafter)
        take_up(drafter, [0], [[5, 6]])
        with torch.no_grad():
            return drafter.draft(
                known(torch.zeros(1, 4).long(), torch.tensor([1])), torch.tensor([2]), ALL
            ).confidence_BK

    assert torch.equal(first_confidence("auto"), first_confidence("max_prob"))
    assert not torch.equal(first_confidence("auto"), first_confidence("head"))
