"""Trees hold the likeliest tokens of each row, under a budget and as the rule lets every path go on."""

import numpy as np
import pytest
import torch

from cmasd.drafters.forest import Continuation, Forest, ranked, walk
from cmasd.policies import Rule

END = 9
NONE = torch.zeros(0, dtype=torch.int64)


def grown(rule: Rule, rooms: list[int], chances: dict[tuple[int, ...], list[tuple[int, float]]]) -> Forest:
    """What may follow each path of a row, the same for all rows."""
    forest = Forest(rule, torch.tensor(rooms), torch.tensor([END]))
    paths: dict[int, tuple[int, ...]] = {-1: ()}
    while forest.frontier.rows:
        at = forest.frontier.numbers
        ways = [[Continuation(token, share) for token, share in chances.get(paths[number], [])] for number in at]
        for number, added, mine in zip(at, forest.add(ways), ways, strict=True):
            paths.update((new, (*paths[number], way.token)) for new, way in zip(added, mine, strict=True))
    return forest


CHANCES = {
    (): [(1, 0.6), (2, 0.3), (3, 0.1)],
    (1,): [(4, 0.9), (5, 0.1)],
    (2,): [(END, 0.9), (6, 0.1)],
    (1, 4): [(7, 0.9), (8, 0.1)],
    (2, END): [(1, 1.0)],
}


def test_the_likeliest_come_first_and_a_path_stands_together() -> None:
    draft = grown(Rule.always(4, nodes=5), [4, 4], CHANCES).draft(torch.device("cpu"))
    assert draft.tokens_BK.tolist() == [[1, 4, 7, 2, END]] * 2
    assert draft.parents_BK is not None
    assert draft.parents_BK.tolist() == [[-1, 0, 1, -1, 3]] * 2
    torch.testing.assert_close(draft.confidence_BK[0], torch.tensor([0.6, 0.9, 0.9, 0.3, 0.9]))


def test_nothing_follows_an_end_and_rows_go_no_deeper_than_they_have_room() -> None:
    draft = grown(Rule.always(4, nodes=64), [4, 1, 0], CHANCES).draft(torch.device("cpu"))
    assert draft.lengths_B.tolist() == [9, 3, 0]
    assert draft.tokens_BK[1, :3].tolist() == [1, 2, 3]
    assert END in draft.tokens_BK[0].tolist()


@pytest.mark.parametrize("slope", [None, 1.0])
def test_a_rule_ends_every_path(slope: float | None) -> None:
    least_K, offsets_K = np.full(4, 0.28), np.zeros(4)
    rule = Rule(least_K, least_K, slope=slope, offsets_K=offsets_K, nodes=9)
    draft = grown(rule, [4], CHANCES).draft(torch.device("cpu"))
    assert draft.tokens_BK.tolist() == [[1, 4, 7, 2]]  # of chances 0.6, 0.54, 0.49 and 0.3; 2 ends under 0.28


def test_a_share_is_what_the_rule_makes_of_whole_drafts() -> None:
    confidence = np.array([[0.0, 0.3, 0.999, 1.0]])
    rule = Rule(np.zeros(4), np.zeros(4), slope=0.7, offsets_K=np.array([0.1, -0.4, 1.0, 2.0]))
    shares = [rule.share(float(one), place) for place, one in enumerate(confidence[0])]
    np.testing.assert_allclose(shares, rule.acceptance(confidence)[0])


def test_siblings_have_no_more_than_all_of_the_confidence() -> None:
    ways = list(ranked([5, 6, 7, 8], [1.0, 0.5, 0.25, 0.0], [-0.1, -0.8, -1.5, -9.0], 0.7, (1.0, 2.0, 3.0)))
    assert [way.token for way in ways] == [5, 6, 7]
    assert [way.confidence for way in ways] == pytest.approx([0.7, 0.3, 0.0])
    assert [way.logprob for way in ways] == [-0.1, -0.8, -1.5]
    assert ways[0].components == (1.0, 2.0, 3.0)
    assert all(np.isnan(way.components).all() for way in ways[1:])


def test_a_path_is_walked_as_far_as_it_is_there() -> None:
    tokens, parents = [1, 4, 2, 1], [-1, 0, -1, 2]
    assert walk(tokens, parents, [2, 1, 5]) == [2, 3]
    assert walk(tokens, parents, [1, 4]) == [0, 1]
    assert walk(tokens, parents, [3]) == []


def test_a_path_that_goes_well_is_followed_to_its_end_whatever_stands_beside_it() -> None:
    """A level costs a forward: siblings whose next tokens would not be sent take no places of the likeliest path."""
    ways = [Continuation(token, share) for token, share in ((1, 0.9), (2, 0.05), (3, 0.03))]
    forest, asked = Forest(Rule.always(6, nodes=8), torch.tensor([6]), NONE), []
    while forest.frontier.rows:
        asked.append(len(forest.frontier.rows))
        forest.add([ways] * asked[-1])
    draft = forest.draft(torch.device("cpu"))
    assert draft.tokens_BK[0, :6].tolist() == [1] * 6, "as deep as a chain"
    assert int(draft.lengths_B) == 8
    assert len(asked) == 6
    assert sum(asked) <= 1 + 8


def test_where_nobody_knows_a_tree_is_broad() -> None:
    ways = [Continuation(token, share) for token, share in ((1, 0.35), (2, 0.33), (3, 0.32))]
    forest = Forest(Rule.always(6, nodes=12), torch.tensor([6]), NONE)
    while forest.frontier.rows:
        forest.add([ways] * len(forest.frontier.rows))
    draft = forest.draft(torch.device("cpu"))
    assert draft.parents_BK is not None
    assert draft.parents_BK[0].tolist().count(-1) == 3
    assert len(set(draft.parents_BK[0].tolist())) >= 4, "each of the first is gone on from"
