"""The memory that an engine asks for, and how its rows share what there is of it.

On a host a slot takes what its row has come to (`cmasd.runner.cache`): its first places always, those behind only while
a long row is there. Where not all slots can hold the longest row that may come, all rows together are allowed so many
tokens, and rows wait for others to end. On a GPU every slot is allocated as long as the longest row.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Need:
    """Memory that an engine asks for."""

    fixed_bytes: int
    """Whatever the number of slots."""
    slot_bytes: int
    """For each further slot, with rows as long as they may be."""
    least_fixed_bytes: int
    """As `fixed_bytes` and `slot_bytes`, of the first places of slots alone."""
    least_slot_bytes: int
    token_bytes: int
    """Of a place beyond; 0 where slots are allocated whole."""
    longest_tokens: int
    """Places of the longest row."""

    def of(self, slots: int) -> int:
        """Bytes for an engine of `slots` rows as long as they may be."""
        return self.fixed_bytes + slots * self.slot_bytes

    def least(self, slots: int) -> int:
        """Bytes for an engine of `slots` rows of which one may be as long as that."""
        return self.shared(slots, self.longest_tokens) if self.token_bytes else self.of(slots)

    def shared(self, slots: int, tokens: int) -> int:
        """Bytes for an engine of `slots` rows that have so many tokens together."""
        return self.least_fixed_bytes + slots * self.least_slot_bytes + tokens * self.token_bytes

    def most(self, free_bytes: float) -> int:
        """Slots that fit with whatever rows; 0 where not even one does."""
        return max(0, int((free_bytes - self.fixed_bytes) // self.slot_bytes))

    def most_sharing(self, free_bytes: float) -> int:
        """Slots that fit with one long row; 0 where not even one does."""
        return max(self.most(free_bytes), int((free_bytes - self.least(0)) // self.least_slot_bytes))

    def tokens(self, slots: int, free_bytes: float) -> int | None:
        """That rows may have together; None: any, since all fit."""
        if self.of(slots) <= free_bytes or not self.token_bytes:
            return None
        return max(self.longest_tokens, int((free_bytes - self.shared(slots, 0)) // self.token_bytes))
