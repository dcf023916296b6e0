"""Texts of all rows looked up in one call of C, as `by_row` does it row by row."""

from collections.abc import Collection, Sequence
from ctypes import CDLL

from torch import Tensor

from cmasd.drafters.base import Context
from cmasd.drafters.texts import TOLD_APART
from cmasd.kernels import Found, Lookups, PackedRule, Proposal
from cmasd.policies import EDGE, Rule


class TextsAtOnce(Lookups):
    """See `Texts` of `free`."""

    def __init__(
        self,
        library: CDLL,
        kinds: Collection[str],
        max_ngram: int,
        memory_tokens: int,
        vocabulary_size: int,
        inside_words: Collection[int],
        copies_source: bool,
    ) -> None:
        memory_tokens = memory_tokens if "memory" in kinds else 0
        longest, copies = max(max_ngram, TOLD_APART), "copy" in kinds
        super().__init__(
            library, vocabulary_size, max_ngram, memory_tokens, longest, copies, copies and copies_source, inside_words
        )
        self._rule: tuple[Rule, PackedRule | None] | None = None

    def find(self, context: Context, room_B: Tensor, rule: Rule) -> Found:
        """See `Texts.find`."""
        return self.draft(*_known(context), room_B.cpu(), rule.most, self._packed(rule))

    def find_all(self, context: Context, room_B: Tensor, rule: Rule) -> list[list[Proposal]]:
        """See `Texts.find_all`."""
        return self.all(*_known(context), room_B.cpu(), rule.most)

    def _packed(self, rule: Rule) -> PackedRule | None:
        """None where the rule does not look."""
        if self._rule is None or self._rule[0] is not rule:
            calibration = None
            if rule.slope is not None and rule.offsets_K is not None:
                calibration = (rule.slope, rule.offsets_K, EDGE)
            thresholds = rule.go_on_K, rule.keep_K, rule.statistic == "mean"
            packed = PackedRule(*thresholds, calibration, (0.0, 0.0, 0.0, 0.0), 0.0) if rule.looks else None
            self._rule = rule, packed
        return self._rule[1]


def _known(context: Context) -> Sequence[Tensor]:
    return context.tokens_BL.cpu(), context.lengths_B.cpu(), context.prompt_lengths_B.cpu()
