"""The model drafter against its model run without a cache; and what its cache is taken to hold."""

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from cmasd.confidence import build_confidence
from cmasd.confidence.scores import score
from cmasd.config.speculation import ConfidenceConfig
from cmasd.core import Draft
from cmasd.drafters import Context, ModelDrafter
from cmasd.drafters.choice import Choice
from cmasd.generation.constraints import Constraints
from cmasd.kernels import kernels
from cmasd.models.families import Words
from cmasd.policies import FixedPolicy, Policy, Rule, SurvivalPolicy
from cmasd.runner import load_runner
from cmasd.window import Window
from tests.unit.engine.pairs import shared_model

LENGTH = 24
SOURCES = [[5, 6, 7, 8], [9, 10], [11]]


class Ruled(ModelDrafter):
    """Drafts by one rule."""

    rule: Rule

    def propose(self, context: Context, room_B: Tensor) -> Draft:
        return self.draft(context, room_B, self.rule)


class BySignals(Policy):
    """Rows go on by what entropy and softmax margin say, and hardly by confidence."""

    max_draft_tokens = 4

    def plan(self, rows: int) -> Rule | None:
        least_K, weights_2 = np.array([0.5, 0.24, 0.12, 0.06]), np.array([0.9, -0.7])
        return Rule(least_K, least_K, slope=0.1, offsets_K=np.array([0.6, 0.2, -0.1, 0.0]), weights_2=weights_2)


def drafter_of(
    policy: Policy,
    eos: tuple[int, ...] = (),
    temperature: float | None = None,
    family: str = "marian",
    shortlist: tuple[int, ...] | None = None,
    margin_form: Literal["full", "printed"] = "full",
) -> Ruled:
    words = Words(shortlist=shortlist)
    runner = load_runner(shared_model(family), slots=4, max_length=LENGTH, max_source_length=8, words=words)
    confidence = build_confidence(ConfidenceConfig(margin_form=margin_form), "max_prob")
    choose = Choice(temperature, 0, words.tensor(runner.device), runner.vocabulary_size, runner.device)
    eos_ids = torch.tensor(eos, dtype=torch.int64)
    drafter = Ruled(runner, confidence, Constraints(eos_token_ids=eos), choose, eos_ids)
    rule = policy.plan(len(SOURCES))
    assert rule is not None
    drafter.rule = rule
    drafter.prefill([0, 1, 2], SOURCES)
    return drafter


def context(rows: list[list[int]]) -> Context:
    """Rows of decoder tokens; each starts with Marian's first token, 0."""
    tokens_BL = torch.zeros(len(rows), LENGTH, dtype=torch.int64)
    for row, tokens in enumerate(rows):
        tokens_BL[row, : len(tokens)] = torch.tensor(tokens)
    lengths_B = torch.tensor([len(tokens) for tokens in rows])
    ones_B = torch.ones_like(lengths_B)
    return Context(tokens_BL, lengths_B, ones_B, ones_B * 20, torch.empty(len(rows), 0, dtype=torch.int64))


@torch.no_grad()
def next_logits(source: list[int], tokens: list[int]) -> Tensor:
    """(V,) logits after the row's last token, from an uncached forward."""
    model = shared_model("marian")
    output: Tensor = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([tokens])).logits
    return output[0, -1]


def continuation(source: list[int], tokens: list[int], count: int) -> list[int]:
    row = list(tokens)
    for _ in range(count):
        row.append(int(next_logits(source, row).argmax()))
    return row[len(tokens) :]


def proposals(draft: Draft) -> list[list[int]]:
    return [row[:length] for row, length in zip(draft.tokens_BK.tolist(), draft.lengths_B.tolist(), strict=True)]


def assert_scored(draft: Draft, sources: list[list[int]], rows: list[list[int]]) -> None:
    """Every sent token carries the scores of the model's own distribution; a wrong past would show here first."""
    for r, tokens in enumerate(proposals(draft)):
        for j in range(len(tokens)):
            scores = score(next_logits(sources[r], rows[r] + tokens[:j])[None])
            torch.testing.assert_close(draft.confidence_BK[r, j], scores.max_prob[0], atol=1e-5, rtol=0)
            components = torch.stack([scores.entropy[0], scores.margin[0], scores.softmax[0]])
            torch.testing.assert_close(draft.components_BK3[r, j], components, atol=1e-5, rtol=0)


def test_drafts_are_the_models_greedy_continuation() -> None:
    drafter, rows = drafter_of(FixedPolicy(4)), [[0, 20, 21], [0], [0, 30]]
    draft = drafter.propose(context(rows), torch.tensor([4, 2, 0]))
    expected = [continuation(source, row, n) for source, row, n in zip(SOURCES, rows, (4, 2, 0), strict=True)]
    assert proposals(draft) == expected
    assert_scored(draft, SOURCES, rows)
    assert draft.probs_BKV is None


def test_rollback_catch_up_and_moves() -> None:
    """After any acceptance, skipped iterations and moves, drafts are again those of the model."""
    drafter, generator = drafter_of(FixedPolicy(3)), torch.Generator().manual_seed(0)
    rows, sources = [[0], [0], [0]], list(SOURCES)
    for step in range(6):
        if step == 3:  # the first row leaves and the last takes its slot
            drafter.move(2, 0)
            rows[0], sources[0] = rows.pop(), sources.pop()
        draft = drafter.propose(context(rows), torch.full((len(rows),), 3))
        assert proposals(draft) == [continuation(source, row, 3) for source, row in zip(sources, rows, strict=True)]
        assert_scored(draft, sources, rows)
        accepted_B = torch.randint(0, 4, (len(rows),), generator=generator)
        drafter.commit(context(rows), accepted_B)
        for row, drafted, count in zip(rows, proposals(draft), accepted_B.tolist(), strict=True):
            row += [*drafted[:count], 40 + step]
        if step == 1:  # plain iterations pass without the drafter
            rows = [row + [50 + r, 51, 52][: r + 1] for r, row in enumerate(rows)]


def test_rows_that_are_taken_up_later_draft_as_the_others() -> None:
    """Nothing is encoded until a row is drafted for; moves before that move the intention."""
    drafter, batches = drafter_of(FixedPolicy(3)), []
    prefill = drafter.runner.prefill

    def counted(slots: list[int], sources: list[list[int]]) -> None:
        batches.append(dict(zip(slots, sources, strict=True)))
        prefill(slots, sources)

    drafter.runner.prefill = counted  # type: ignore[method-assign]
    late = [[30, 31, 32, 33, 34], [35, 36], [37]]
    drafter.prefill([1, 2, 3], late, later=True)
    drafter.move(3, 2)  # what was to be done for slot 2 is off
    assert batches == []
    sources, rows = [SOURCES[0], late[0], late[2]], [[0, 20], [0], [0, 40, 41]]
    draft = drafter.propose(context(rows), torch.full((3,), 3))
    assert batches == [{1: late[0], 2: late[2]}]
    was_caught_up = drafter.caught_up
    assert not was_caught_up, "encoding costs time that is not drafting"
    assert proposals(draft) == [continuation(source, row, 3) for source, row in zip(sources, rows, strict=True)]
    assert_scored(draft, sources, rows)
    drafter.commit(context(rows), torch.tensor([3, 0, 1]))
    for row, drafted, count in zip(rows, proposals(draft), (3, 0, 1), strict=True):
        row += [*drafted[:count], 50]
    draft = drafter.propose(context(rows), torch.full((3,), 3))
    assert_scored(draft, sources, rows)
    assert drafter.caught_up
    assert len(batches) == 1


@pytest.mark.parametrize("threshold", [None, 0.01, 0.05, "signals"])
@pytest.mark.parametrize("shortlist", [None, tuple(range(40, 3, -1))])
@pytest.mark.parametrize("margin_form", ["full", "printed"])
def test_the_kernel_drafts_as_forwards_do(
    threshold: float | str | None, shortlist: tuple[int, ...] | None, margin_form: Literal["full", "printed"]
) -> None:
    """Through rejections, whole drafts and plain iterations between; ends of sequence and room included."""
    policy: Policy = FixedPolicy(3) if threshold is None else BySignals()
    if isinstance(threshold, float):
        policy = SurvivalPolicy(threshold, 4)
    native, stepwise = (drafter_of(policy, (21, 9), None, "marian", shortlist, margin_form) for _ in range(2))
    if kernels(torch.float64) is None:
        pytest.skip("no C compiler here")
    assert native._native is not None
    stepwise._native = None
    rows, lengths = [[0], [0, 20, 21], [0, 7]], set()
    for accepted in [(0, 1, 3), (2, 0, 1), (1, 1, 1), (4, 2, 0)]:
        room_B = torch.tensor([4, 2, 3])
        one, other = (drafter.propose(context(rows), room_B) for drafter in (native, stepwise))
        assert one.lengths_B.tolist() == other.lengths_B.tolist()
        assert proposals(one) == proposals(other)
        torch.testing.assert_close(one.confidence_BK, other.confidence_BK, atol=1e-5, rtol=0, equal_nan=True)
        torch.testing.assert_close(one.components_BK3, other.components_BK3, atol=1e-5, rtol=0, equal_nan=True)
        assert one.drafted_B.tolist() == other.drafted_B.tolist()
        assert native.caught_up == stepwise.caught_up
        lengths |= set(one.lengths_B.tolist())
        counts_B = torch.tensor(accepted).minimum(one.lengths_B)
        for drafter in (native, stepwise):
            drafter.commit(context(rows), counts_B)
        for row, drafted, count in zip(rows, proposals(one), counts_B.tolist(), strict=True):
            row += [*drafted[:count], 30, *([31] if len(rows[0]) % 2 else [])]
    assert max(lengths) > 0


def test_a_row_that_moves_onto_a_waiting_one_takes_its_place() -> None:
    drafter, rows = drafter_of(FixedPolicy(2)), [[0], [0]]
    drafter.prefill([1], [[30, 31]], later=True)
    drafter.move(2, 1)
    draft = drafter.propose(context(rows), torch.tensor([2, 2]))
    assert_scored(draft, [SOURCES[0], SOURCES[2]], rows)
    drafter.commit(context(rows), torch.tensor([0, 0]))
    rows[0].append(50)
    drafter.prefill([1], [[30, 31]], later=True)
    drafter.prefill([1], [[32, 33]])
    draft = drafter.propose(context(rows), torch.tensor([2, 2]))
    assert_scored(draft, [SOURCES[0], [32, 33]], rows)


@pytest.mark.parametrize(("skipped", "caught_up"), [(0, True), (1, False), (5, False)])
def test_plain_iterations_are_caught_up_on(skipped: int, caught_up: bool) -> None:
    """One or two missing tokens are every iteration's; more were left by iterations that skipped the drafter."""
    drafter, rows = drafter_of(FixedPolicy(2)), [[0], [0, 20, 21], [0]]
    first = drafter.propose(context(rows), torch.full((3,), 2))
    drafter.commit(context(rows), torch.tensor([2, 1, 0]))
    for row, drafted, count in zip(rows, proposals(first), (2, 1, 0), strict=True):
        row += [*drafted[:count], 45, *range(50, 50 + skipped)]
    assert_scored(drafter.propose(context(rows), torch.full((3,), 2)), SOURCES, rows)
    assert drafter.caught_up == caught_up


def test_drafting_ends_at_an_end_of_sequence() -> None:
    endless = continuation(SOURCES[0], [0], 5)
    eos = endless[2]
    draft = drafter_of(FixedPolicy(5), eos=(eos,)).propose(context([[0]]), torch.tensor([5]))
    assert proposals(draft) == [endless[: endless.index(eos) + 1]]


@pytest.mark.parametrize("native", [True, False])
def test_no_forward_runs_for_tokens_that_no_row_wants(native: bool) -> None:
    if native and kernels(torch.float64) is None:
        pytest.skip("no C compiler here")
    drafter = drafter_of(SurvivalPolicy(1.0, 5))
    if not native:
        drafter._native = None
    draft = drafter.propose(context([[0], [0, 20, 21]]), torch.tensor([5, 5]))
    assert draft.drafted_B.tolist() == [1, 1], "none after the first token"
    assert draft.lengths_B.tolist() == [0, 0]


def test_rows_that_stop_are_run_no_more() -> None:
    """Token by token, what is fed is what the rows lacked and every drafted token but the last of each."""
    drafter, fed = drafter_of(SurvivalPolicy(0.02, 5)), []
    drafter._native, run = None, drafter.runner.run

    def counted(window: Window, asked_Q: Tensor | None = None) -> Tensor:
        fed.append(len(window.tokens_N))
        return run(window, asked_Q)

    drafter.runner.run = counted  # type: ignore[method-assign]
    rows = [[0], [0, 20, 21], [0, 30]]
    made = drafter.propose(context(rows), torch.tensor([5, 5, 5])).drafted_B.tolist()
    assert len(set(made)) > 1, "each row by its own confidence"
    assert fed[0] == sum(map(len, rows))
    assert sum(fed[1:]) == sum(made) - len(made)


def test_sampled_drafts_carry_the_distribution_they_came_from() -> None:
    drafter = drafter_of(FixedPolicy(3), temperature=0.7)
    draft = drafter.propose(context([[0], [0, 20]]), torch.tensor([3, 3]))
    assert draft.probs_BKV is not None
    for r, row in enumerate([[0], [0, 20]]):
        for j in range(3):
            logits_V = next_logits(SOURCES[r], row + draft.tokens_BK[r, :j].tolist())
            expected = torch.softmax(logits_V.float() / 0.7, -1)
            torch.testing.assert_close(draft.probs_BKV[r, j], expected, atol=1e-5, rtol=0)
    greedy = [continuation(source, row, 3) for source, row in zip(SOURCES, [[0], [0, 20]], strict=False)]
    assert draft.tokens_BK.tolist() != greedy


def test_decoder_only_prompts_are_cached_up_to_their_last_token() -> None:
    drafter = drafter_of(FixedPolicy(2), family="llama")
    base = context(SOURCES)
    draft = drafter.propose(base, torch.full((3,), 2))
    model = shared_model("llama")
    for row, source in enumerate(SOURCES):
        tokens = list(source)
        for drafted in draft.tokens_BK[row].tolist():
            logits: Tensor = model(input_ids=torch.tensor([tokens])).logits
            assert drafted == int(logits[0, -1].argmax())
            tokens.append(drafted)
