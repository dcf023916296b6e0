"""An iteration whose drafts are trees: what the verifier is fed, and what is left of a tree when it was judged.

From the verdict on, an iteration goes on as if the path that was judged had been all of the draft; the tokens beside it
count as drafted.

Shapes: B live rows, K tokens of a tree, N tokens verified.
"""

from dataclasses import replace

import torch
from torch import Tensor

from cmasd.core import Draft, Logits
from cmasd.drafters import Context
from cmasd.drafters.base import is_sent
from cmasd.engine.slots import SlotState
from cmasd.generation.branches import constrain_tree
from cmasd.generation.constraints import Constraints
from cmasd.runner import Runner
from cmasd.signals import RowNumbers
from cmasd.verification.base import Verification
from cmasd.verification.trees import JudgedTree, judge
from cmasd.window import Window


class Trees:
    """Of one engine."""

    def __init__(
        self, verifier: Runner, verification: Verification, constraints: Constraints, state: SlotState
    ) -> None:
        self._verifier = verifier
        self._verification = verification
        self._constraints = constraints
        self._state = state

    def verify(self, context: Context, tree: Draft, window: Window) -> JudgedTree:
        """One forward of the verifier over a window of the rows' last tokens and trees; it keeps what was accepted."""
        assert tree.parents_BK is not None, "it is a tree"
        parents_BT = torch.nn.functional.pad(tree.parents_BK + 1, (1, 0), value=-1)
        window = replace(window, parents_N=parents_BT[window.runs_N, window.steps_N])
        logits = Logits(self._verifier.run(window), window.firsts_R1, window.longest)
        if not self._constraints.is_free:
            about = context.tokens_BL, context.prompt_lengths_B, context.limits_B
            logits = replace(
                logits, values_NV=constrain_tree(self._constraints, logits.values_NV, window, None, *about)
            )
        judged = judge(self._verification, tree, logits)
        self._verifier.settle(*judged.kept)
        return judged

    def tally(self, tree: Draft, path: Draft) -> None:
        """What was drafted beside the path."""
        rows = len(tree.lengths_B)
        self._state.numbers[:rows, RowNumbers.drafted_tokens.place] += tree.lengths_B - path.lengths_B
        self._state.confidence_sum[:rows] += _sum(tree) - _sum(path)


def _sum(draft: Draft) -> Tensor:
    """(B,) of the confidences of what was sent."""
    return draft.confidence_BK.where(is_sent(draft), 0.0).sum(-1)
