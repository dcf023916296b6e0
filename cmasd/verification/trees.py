"""Which path of a tree the verifier goes, and what it says of it.

Rules that draw nothing judge one path as they judge a draft that has no other: from every token that of its ways on
which the verifier finds likeliest. Where the argmax is among the ways it is that one, and where a rule would accept any
it accepts the likeliest. Speculative sampling tries the ways in turn, each against what is left of the verifier's
distribution after those before were refused (SpecInfer, arXiv 2305.09781): lossless in distribution.

Shapes: B rows, K tokens of a tree, D of a path, T = D + 1, N tokens verified, V vocabulary.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cmasd.core import Draft, Logits, Verdict
from cmasd.kernels import kernels_for
from cmasd.verification.base import Verification
from cmasd.verification.sampling import SamplingVerification

Ways = list[dict[int, list[int]]]
"""Of each row, the tokens that follow a token, by its number; -1 is the row's last."""


@dataclass(frozen=True)
class JudgedTree:
    """A tree as one path of it."""

    draft: Draft
    """The path as a draft that has no other."""
    logits: Logits
    """Along it."""
    verdict: Verdict
    index_BT: Tensor
    """(B, T) where the row's last token and the path are in the list that was verified."""

    @property
    def kept(self) -> tuple[Tensor, Tensor]:
        """In that list (M,) every row's last token and those that were accepted; and how many of each row (B,)."""
        counts_B = self.verdict.accepted_B + 1
        steps_T = torch.arange(self.index_BT.shape[1], device=counts_B.device)
        return self.index_BT[steps_T < counts_B[:, None]], counts_B


def judge(rule: Verification, tree: Draft, logits: Logits) -> JudgedTree:
    """`logits` are behind each row's last token, then behind each of its tree's."""
    if isinstance(rule, SamplingVerification):
        return _drawn(rule, tree, logits, _ways(tree))
    draft, along, index_BT = _along(tree, logits, *_likeliest(tree, logits))
    return JudgedTree(draft, along, rule.verify(draft, along), index_BT)


def _ways(tree: Draft) -> Ways:
    assert tree.parents_BK is not None, "it is a tree"
    ways: Ways = []
    for parents, size in zip(tree.parents_BK.tolist(), tree.lengths_B.tolist(), strict=True):
        mine: dict[int, list[int]] = {}
        for number, parent in enumerate(parents[:size]):
            mine.setdefault(parent, []).append(number)
        ways.append(mine)
    return ways


def _likeliest(tree: Draft, logits: Logits) -> tuple[Tensor, Tensor]:
    """Of each row the path to an end of its tree, as `_padded`; of ways that are as likely the lowest id, as the argmax
    is.
    """
    assert tree.parents_BK is not None, "it is a tree"
    kernels = kernels_for(logits.values_NV)
    if kernels is not None:
        given = logits.firsts_B1, tree.tokens_BK, tree.parents_BK, tree.lengths_B
        paths_BK, sizes_B = kernels.tree_judge(logits.values_NV, *given)
        return paths_BK[:, : max(sizes_B.tolist())], sizes_B
    last_B1 = logits.firsts_B1[1:, None] - 1  # what stands behind a row's tree means nothing
    before_BK = (logits.firsts_B1[:-1, None] + 1 + tree.parents_BK).minimum(last_B1)
    scores, tokens = logits.values_NV[before_BK, tree.tokens_BK].tolist(), tree.tokens_BK.tolist()
    paths = []
    for row, mine in enumerate(_ways(tree)):
        path: list[int] = []
        while found := mine.get(path[-1] if path else -1):
            path.append(max(found, key=lambda number: (scores[row][number], -tokens[row][number])))
        paths.append(path)
    return _padded(paths, logits.values_NV.device)


def _padded(paths: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, D), and how long each is (B,)."""
    longest = max(map(len, paths))
    padded = [path + [0] * (longest - len(path)) for path in paths]
    path_BD = torch.tensor(padded, dtype=torch.int64, device=device).view(len(paths), longest)
    return path_BD, torch.tensor([len(path) for path in paths], device=device)


def _drawn(rule: SamplingVerification, tree: Draft, logits: Logits, ways: Ways) -> JudgedTree:
    """The path that was accepted, and the first way that was not."""
    firsts, tokens = logits.firsts_B1.tolist(), tree.tokens_BK.tolist()
    paths, accepted, following = [], [], []
    for row, mine in enumerate(ways):
        path: list[int] = []
        while True:
            at = path[-1] if path else -1
            probs_V = torch.softmax(logits.values_NV[firsts[row] + 1 + at].float() / rule.temperature, -1)
            found = mine.get(at, [])
            theirs = [None if tree.probs_BKV is None else tree.probs_BKV[row, number] for number in found]
            taken, left_V = rule.try_ways(probs_V, [tokens[row][number] for number in found], theirs)
            if taken is None:
                break
            path.append(found[taken])
        accepted.append(len(path))
        following.append(int(rule.draw(left_V[None])))
        paths.append(path + found[:1])
    draft, along, index_BT = _along(tree, logits, *_padded(paths, logits.values_NV.device))
    accepted_B, next_B = torch.tensor([accepted, following], device=index_BT.device)
    verdict = Verdict(accepted_B, next_B, torch.full_like(draft.confidence_BK, torch.nan))
    return JudgedTree(draft, along, verdict, index_BT)


def _along(tree: Draft, logits: Logits, path_BD: Tensor, lengths_B: Tensor) -> tuple[Draft, Logits, Tensor]:
    """One path of each row; of shorter ones the rest is not sent."""
    longest, device = path_BD.shape[1], path_BD.device

    def of_path(values: Tensor) -> Tensor:
        return values.take_along_dim(path_BD.view(*path_BD.shape, *[1] * (values.dim() - 2)), dim=1)

    draft = Draft(
        tokens_BK=of_path(tree.tokens_BK),
        lengths_B=lengths_B,
        confidence_BK=of_path(tree.confidence_BK),
        components_BK3=of_path(tree.components_BK3),
        source_B=tree.source_B,
        logprob_BK=None if tree.logprob_BK is None else of_path(tree.logprob_BK),
        source_BK=None if tree.source_BK is None else of_path(tree.source_BK),
    )
    index_BT = logits.firsts_B1[:-1, None] + torch.nn.functional.pad(path_BD + 1, (1, 0))
    firsts_B1 = torch.nn.functional.pad((lengths_B + 1).cumsum(0), (1, 0))
    sent_BT = torch.arange(longest + 1, device=device) <= lengths_B[:, None]
    along = replace(logits, values_NV=logits.values_NV[index_BT[sent_BT]], firsts_B1=firsts_B1, longest=longest + 1)
    return draft, along, index_BT
