"""Texts of all rows looked up in one call of C, as `by_row` does it row by row."""

from ctypes import CDLL

from torch import Tensor

from cmasd.drafters.base import Context
from cmasd.drafters.texts import LookedUp
from cmasd.kernels import Asked, Found, Lookups, PackedRule, Proposal, asked_of
from cmasd.policies import EDGE, Rule


class TextsAtOnce(Lookups):
    """See `Texts` of `free`."""

    def __init__(self, library: CDLL, asked: LookedUp) -> None:
        super().__init__(
            *(library, asked.vocabulary_size, asked.max_ngram, asked.memory_tokens, asked.longest),
            *(asked.copies, asked.copies_source, asked.inside_words),
        )
        self._rule: tuple[Rule, PackedRule | None] | None = None
        self._rows: tuple[Context, Asked] | None = None
        """Those of the latest iteration: mostly the next one's, too."""

    def find(self, context: Context, room_B: Tensor, rule: Rule) -> Found:
        """See `Texts.find`."""
        room_B = room_B.cpu().contiguous()
        return self.draft(self._asked(context, room_B, rule.most), self._packed(rule))

    def find_all(self, context: Context, room_B: Tensor, rule: Rule) -> list[list[Proposal]]:
        """See `Texts.find_all`."""
        room_B = room_B.cpu().contiguous()
        return self.all(self._asked(context, room_B, rule.most))

    def _asked(self, context: Context, room_B: Tensor, most: int) -> Asked:
        """Good while the room is kept."""
        if self._rows is None or self._rows[0] is not context:
            known = context.tokens_BL, context.lengths_B, context.prompt_lengths_B
            self._rows = context, asked_of(*known)
        asked = self._rows[1]
        asked.rooms, asked.most = room_B.data_ptr(), most
        return asked

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
