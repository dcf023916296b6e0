"""The token of a draft, from its logits: the likeliest, or one drawn at a temperature with its distribution.

Shapes: B rows, S columns of the logits, V vocabulary, F tokens that are gone on from, n ways to go on.
"""

import torch
from torch import Tensor


class Choice:
    """Greedy, or sampling; a shortlist's columns become token ids again."""

    def __init__(
        self,
        temperature: float | None,
        seed: int,
        shortlist: Tensor | None,
        vocabulary_size: int,
        device: torch.device,
        draws: bool = True,
    ) -> None:
        """`temperature`: None is greedy; a number samples, and drafts carry their distribution.

        Without `draws` the caller draws from that by himself, and the token beside it is the likeliest.
        """
        self.samples = temperature is not None
        self._temperature = temperature
        self._draws = draws
        self._generator = torch.Generator(device).manual_seed(seed + 1)
        self._shortlist_S = shortlist
        self.vocabulary_size = vocabulary_size
        """Of the verifier."""

    def __call__(self, logits_BS: Tensor, best_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens (B,), and their distribution (B, V) when sampling; `best_B` are the columns of the argmax."""
        ids_S = self._shortlist_S
        if self._temperature is None:
            return best_B if ids_S is None else ids_S.index_select(0, best_B), None
        probs_BS = torch.softmax(logits_BS.float() / self._temperature, dim=-1)
        column_B = best_B
        if self._draws:
            column_B = torch.multinomial(probs_BS, 1, generator=self._generator).squeeze(1)
        return (column_B if ids_S is None else ids_S[column_B]), self._whole(probs_BS)

    def several(self, logits_FS: Tensor, ways: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens (F, n), how likely the likeliest are against the first of them (F, n), and, when sampling, what the
        tokens were drawn from (F, V), one after the other and none twice.
        """
        top_Fn, columns_Fn = logits_FS.float().topk(min(ways, logits_FS.shape[1]))
        shares_Fn, probs_FV = (top_Fn - top_Fn[:, :1]).exp(), None
        if self._temperature is not None:
            probs_FS = torch.softmax(logits_FS.float() / self._temperature, dim=-1)
            columns_Fn = torch.multinomial(probs_FS, columns_Fn.shape[1], generator=self._generator)
            shares_Fn = shares_Fn * (probs_FS.gather(1, columns_Fn) > 0)
            probs_FV = self._whole(probs_FS)
        return (columns_Fn if self._shortlist_S is None else self._shortlist_S[columns_Fn]), shares_Fn, probs_FV

    def _whole(self, probs_BS: Tensor) -> Tensor:
        """(B, V)"""
        if self._shortlist_S is None:
            return probs_BS
        whole_BV = probs_BS.new_zeros(len(probs_BS), self.vocabulary_size)
        return whole_BV.index_copy_(1, self._shortlist_S, probs_BS)
