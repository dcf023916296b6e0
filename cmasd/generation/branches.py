"""A checkpoint's rules (`constraints.py`) for tokens of a tree: each of them has its own ancestors for a past.

Shapes: N tokens of a window, Q of them that are asked for, T the longest run, L token buffer, V vocabulary.
"""

import torch
from torch import Tensor

from cmasd.generation.constraints import Constraints
from cmasd.window import Window


def constrain_tree(
    constraints: Constraints,
    logits_QV: Tensor,
    window: Window,
    asked_Q: Tensor | None,
    tokens_BL: Tensor,
    prompt_lengths_B: Tensor,
    limits_B: Tensor,
) -> Tensor:
    """Constrain, in place, the logits behind the tokens of a window that are asked for, by default all."""
    runs_Q = window.runs_N if asked_Q is None else window.runs_N[asked_Q]
    steps_Q = window.steps_N if asked_Q is None else window.steps_N[asked_Q]
    tokens_Q = window.tokens_N if asked_Q is None else window.tokens_N[asked_Q]
    slots_Q, starts_Q1 = window.slots_R[runs_Q], window.starts_R[runs_Q, None]
    sees_QT = window.sees_RTT[runs_Q, steps_Q]
    spare = tokens_BL.shape[1]
    places_QT = (starts_Q1 + window.padded(window.depths_N)[runs_Q]).where(sees_QT, spare)
    pasts_QL = torch.nn.functional.pad(tokens_BL[slots_Q], (0, 1))
    pasts_QL = pasts_QL.scatter(1, places_QT, window.padded(window.tokens_N)[runs_Q])[:, :spare]
    own_Q = starts_Q1[:, 0] + sees_QT.sum(1) - 1
    about = pasts_QL, own_Q, prompt_lengths_B[slots_Q], limits_B[slots_Q], tokens_Q[:, None]
    return constraints.apply(logits_QV[:, None], *about)[:, 0]
