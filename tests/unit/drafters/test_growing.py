"""Trees that are grown in C are those of `Forest`, level by level, and so are their windows and paths."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cmasd.drafters.base import Context
from cmasd.drafters.growing import Growing, InC, InPython
from cmasd.kernels import kernels
from cmasd.policies import Rule

ROWS, LENGTH, VOCABULARY, ENDS = 4, 40, 12, torch.tensor([3, 7])
FOUND = kernels(torch.float32)


def rule_of(rng: np.random.Generator, most: int, is_round: bool) -> Rule:
    """Any thresholds and statistic; where it `is_round` chances are products of halves, hence often equal."""
    least = rng.choice([0.0, 0.05, 0.3], 2)
    known: dict[str, Any] = {}
    if not is_round and rng.random() < 0.7:
        known = {"slope": float(rng.uniform(0.5, 2)), "offsets_K": rng.normal(0, 0.5, most)}
        if rng.random() < 0.7:
            known["weights_2"] = rng.normal(0, 0.5, 2) * rng.choice([0, 1], 2)
    go_on_K, keep_K = (np.full(most, one or -np.inf) for one in least)
    statistic = "product" if is_round else str(rng.choice(["product", "mean"]))
    return Rule(go_on_K, keep_K, statistic, nodes=int(rng.integers(1, 10)), **known)  # type: ignore[arg-type]


def ways_of(rng: np.random.Generator, asked: int, ways: int, is_round: bool) -> dict[str, Tensor]:
    """What may follow so many tokens, some of which have fewer ways, or a confidence that nobody knows."""
    shares = np.sort(rng.choice([0.25, 0.5, 1.0], (asked, ways)) if is_round else rng.random((asked, ways)))[:, ::-1]
    shares[:, 0] = 1.0
    shares[rng.random((asked, ways)) < 0.1] = 0.0
    confidence = rng.choice([0.5, 1.0], asked) if is_round else rng.random(asked)
    confidence[rng.random(asked) < 0.1] = np.nan
    tokens = np.stack([rng.permutation(VOCABULARY)[:ways] for _ in range(asked)])
    real = {"shares": shares, "logprobs": np.log(shares.clip(1e-9)), "confidence": confidence}
    real["components"] = np.where(rng.random((asked, 3)) < 0.2, np.nan, rng.random((asked, 3)))
    return {"tokens": torch.from_numpy(tokens), **{n: torch.from_numpy(v.astype(np.float32)) for n, v in real.items()}}


def context_of(rng: np.random.Generator) -> Context:
    lengths_B = torch.from_numpy(rng.integers(2, 20, ROWS))
    tokens_BL = torch.from_numpy(rng.integers(0, VOCABULARY, (ROWS, LENGTH)))
    return Context(tokens_BL, lengths_B, torch.ones(ROWS), torch.full((ROWS,), LENGTH), tokens_BL[:, :0])


def same(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9, equal_nan=True)
    else:
        assert one == other


@pytest.mark.skipif(FOUND is None, reason="there is no C compiler")
@pytest.mark.parametrize("is_round", [False, True], ids=["any chances", "equal chances"])
def test_the_same_trees_with_and_without_a_compiler(is_round: bool) -> None:
    assert FOUND is not None
    levels = moved = 0
    for seed in range(90):
        rng = np.random.default_rng([seed, is_round])
        most, ways = int(rng.integers(1, 6)), int(rng.integers(1, 5))
        rule, context = rule_of(rng, most, is_round), context_of(rng)
        room_B = torch.from_numpy(rng.integers(0, 7, ROWS))
        room_B[0] += 1
        both: list[Growing] = [InC(FOUND, rule, room_B, ENDS, ways), InPython(rule, room_B, ENDS)]
        while True:
            ours, theirs = both
            assert (ours.asked, ours.depth if ours.asked else 0) == (theirs.asked, theirs.depth if theirs.asked else 0)
            if not ours.asked:
                break
            for one, other in zip(ours.latest(room_B.device), theirs.latest(room_B.device), strict=True):
                same(one, other)
            if ours.depth:
                levels += 1
                (window, asked_Q), (expected, places_Q) = ours.window(context), theirs.window(context)
                same(asked_Q, places_Q)
                for name in ("tokens_N", "slots_R", "starts_R", "firsts_R1", "longest", "parents_N"):
                    same(getattr(window, name), getattr(expected, name))
            given = ways_of(rng, ours.asked, ways, is_round)
            for trees in both:
                parts = given["tokens"], given["shares"], given["logprobs"]
                trees.grow(parts, given["confidence"], given["components"])
        draft, reference = (trees.draft(room_B.device) for trees in both)
        for name in ("tokens_BK", "lengths_B", "parents_BK", "confidence_BK", "components_BK3", "logprob_BK"):
            same(getattr(draft, name), getattr(reference, name))
        assert reference.parents_BK is not None
        accepted_B = torch.zeros_like(room_B)
        for row in range(ROWS):  # along the path to some token, and now and then off it
            size = int(reference.lengths_B[row])
            at, path = int(rng.integers(0, size)) if size else -1, []
            while at >= 0:
                path.append(int(reference.tokens_BK[row, at]))
                at = int(reference.parents_BK[row, at])
            said = path[::-1][: int(rng.integers(0, len(path) + 1))]
            context.tokens_BL[row, int(context.lengths_B[row]) :][: len(said)] = torch.tensor(said).long()
            accepted_B[row] = len(said)
        (held_B, moves_M3), (expected_B, others_M3) = (trees.path(context, accepted_B) for trees in both)
        same(held_B, expected_B)
        assert sorted(moves_M3.tolist()) == sorted(others_M3.tolist())
        moved += len(moves_M3)
    assert levels > 60
    assert moved > 5
