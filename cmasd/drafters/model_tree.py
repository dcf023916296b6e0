"""Trees that a model drafts: a forward for each level, of the tokens that are gone on from.

The model's cache holds a row's tree behind its text, in the order in which it was gone on from; the path that the
verifier took is made contiguous when that is known.

Shapes: F tokens that are gone on from, Q tokens asked for, n ways behind one, V vocabulary.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from cmasd.confidence.scores import Scores
from cmasd.core import Draft
from cmasd.drafters.base import Context
from cmasd.drafters.choice import Choice
from cmasd.drafters.growing import Growing, growing
from cmasd.generation.branches import constrain_tree
from cmasd.policies import Rule
from cmasd.window import Window

if TYPE_CHECKING:
    from cmasd.drafters.model import ModelDrafter


class ModelTrees:
    """Of one iteration after the other."""

    def __init__(self, drafter: "ModelDrafter", branching: int) -> None:
        """`branching`: most ways to go on behind a token."""
        self._drafter = drafter
        self._branching = branching
        self._trees: Growing | None = None

    def draft(self, context: Context, room_B: Tensor, rule: Rule) -> Draft:
        """Until no row has a token that is worth going on from."""
        drafter, device = self._drafter, room_B.device
        trees = self._trees = growing(rule, room_B, drafter.eos_ids, self._branching)
        window = drafter.missing(context, trees.latest(device)[0])
        self._go_on(trees, context, window, window.firsts_R1[1:] - 1)
        while trees.asked:
            self._go_on(trees, context, *trees.window(context))
        return trees.draft(device)

    def commit(self, context: Context, accepted_B: Tensor) -> Tensor:
        """(B,) how many tokens of each row the cache holds behind its text, of those that were accepted."""
        trees, self._trees = self._trees, None
        assert trees is not None, "they were grown"
        held_B, moves_M3 = trees.path(context, accepted_B)
        if len(moves_M3):
            self._drafter.runner.carry(*moves_M3.unbind(1))
        return held_B

    def _go_on(self, trees: Growing, context: Context, window: Window, asked_Q: Tensor) -> None:
        """From each of the latest tokens."""
        drafter = self._drafter
        logits_FV = drafter.behind(window, asked_Q)
        if drafter.follows_rules:
            if window.parents_N is None:
                window = replace(window, parents_N=window.steps_N - 1)
            about = context.tokens_BL, context.prompt_lengths_B, context.limits_B
            logits_FV = constrain_tree(drafter.constraints, logits_FV, window, asked_Q, *about)
        confidence_F, scores = drafter.score(logits_FV)
        branch(trees, drafter.choose, self._branching, logits_FV, confidence_F, scores)


def branch(
    trees: Growing, choose: Choice, branching: int, logits_FV: Tensor, confidence_F: Tensor, scores: Scores
) -> None:
    """The ways behind each of the latest tokens, by the logits there."""
    tokens_Fn, shares_Fn, probs_FV = choose.several(logits_FV, branching)
    if probs_FV is None:
        logprobs_Fn = (shares_Fn * scores.max_prob.float()[:, None]).log()
    else:
        logprobs_Fn = probs_FV.gather(1, tokens_Fn).log()
    trees.grow((tokens_Fn, shares_Fn, logprobs_Fn), confidence_F.float(), scores.components.float(), probs_FV)
