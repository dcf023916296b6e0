"""How many tokens the rows in memory may come to, and how many of them are taken.

A row takes all that it may need before it is prefilled, so that none ever has to be thrown out for another.
"""

from cmasd.engine.slots import SlotShape
from cmasd.errors import ConfigError


class Places:
    """Of an engine's slots."""

    def __init__(self, most: int | None, shape: SlotShape) -> None:
        """`most`: `engine.cache_tokens`; raises `ConfigError` where it is less than the longest row."""
        if most is not None and most < shape.places:
            raise ConfigError(
                f"engine.cache_tokens: must hold the longest row, got {most}; expected at least {shape.places}. Raise "
                "it, or lower engine.max_source_tokens or engine.max_new_tokens."
            )
        self._most = most
        self._taken: dict[int, int] = {}

    @property
    def taken(self) -> int:
        """By all rows in memory."""
        return sum(self._taken.values())

    def has_room(self, needs: int) -> bool:
        """Beside the rows in memory."""
        return self._most is None or self.taken + needs <= self._most

    def enter(self, slot: int, needs: int) -> None:
        """A row enters a slot."""
        self._taken[slot] = needs

    def move(self, source: int, target: int) -> None:
        """A row is in another slot from now on."""
        self._taken[target] = self._taken.pop(source)

    def leave(self, slots: list[int]) -> None:
        """The rows in these slots are done."""
        for slot in slots:
            del self._taken[slot]
