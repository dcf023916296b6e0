"""Chooses the few rows that a report shows in full, by light columns alone, and reads only those.

A random sample, fixed by the rows' places so that the same run gives the same page, and the rows with the most
rejected draft tokens. Memory holds the chosen places, never the rows passed over.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from cmasd.io.formats.columnar import python_values
from cmasd.io.run_folder import RunFolder
from cmasd.telemetry.schema import SOURCE_FIELD

RANDOM_ROWS, WORST_ROWS = 6, 3
Place = tuple[int, ...]
"""(file, index, piece, row in the piece)."""


@dataclass
class Picks:
    """Places of rows, the best so far."""

    random: list[tuple[float, Place]] = field(default_factory=list)
    """A heap of (priority, place)."""
    worst: list[tuple[float, Place]] = field(default_factory=list)
    """A heap of (draft tokens not accepted, place)."""

    def add(self, batch: pa.RecordBatch, place: Place) -> None:
        """Rows of an output."""
        failed_R = batch.column("error").is_valid().to_numpy(zero_copy_only=False)
        drafted_R, accepted_R = (
            batch.column(name).to_numpy().astype(np.float64) for name in ("num_drafted_tokens", "num_accepted_tokens")
        )
        priority_R = np.random.default_rng(place).random(batch.num_rows)
        if SOURCE_FIELD.name in batch.schema.names:  # rows that were kept as samples come first
            priority_R += batch.column(SOURCE_FIELD.name).is_valid().to_numpy(zero_copy_only=False)
        _keep(self.random, np.where(failed_R, -1.0, priority_R), place, RANDOM_ROWS)
        lost_R = drafted_R - accepted_R
        _keep(self.worst, np.where(lost_R > 0, lost_R, -1.0), place, WORST_ROWS)

    def chosen(self) -> list[tuple[str, Place]]:
        """Why, and which; each row once, the worst first."""
        worst = [place for _, place in sorted(self.worst, reverse=True)]
        others = sorted(place for _, place in self.random if place not in worst)
        return [
            *(("most draft tokens rejected", place) for place in worst),
            *(("at random", place) for place in others),
        ]

    def read(self, folder: RunFolder) -> list[tuple[str, Place, dict[str, Any]]]:
        """Why, where, and the chosen rows with all their columns."""
        chosen = self.chosen()
        wanted: dict[Place, list[int]] = {}
        for _, place in chosen:
            wanted.setdefault(place[:3], []).append(place[3])
        found = {}
        shards = sorted({(place[0], place[1]) for place in wanted})
        for place, batch in folder.read_outputs(None, positions=shards):
            for row in wanted.get(place, ()):
                table = pa.Table.from_batches([batch.slice(row, 1)])
                found[(*place, row)] = {name: python_values(table[name])[0] for name in table.column_names}
        return [(why, place, found[place]) for why, place in chosen if place in found]


def _keep(heap: list[tuple[float, Place]], value_R: Any, place: Place, most: int) -> None:
    """The `most` largest values that are not negative."""
    for row in np.argsort(value_R)[::-1][:most]:
        if value_R[row] >= 0:
            heapq.heappush(heap, (float(value_R[row]), (*place, int(row))))
            if len(heap) > most:
                heapq.heappop(heap)


def spread_rows(folder: RunFolder, columns: Sequence[str], most: int, done: int) -> dict[Place, dict[str, Any]]:
    """At most so many of the `done` rows of a run, evenly spread, failed ones left out; these columns, by place."""
    every, seen = max(1, done // most), 0
    kept: dict[Place, dict[str, Any]] = {}
    for place, batch in folder.read_outputs([*columns, "error"]):
        for index in range(-seen % every, batch.num_rows, every):
            if batch.column("error")[index].as_py() is None and len(kept) < most:
                kept[(place[0], place[1], place[2], index)] = {
                    name: batch.column(name)[index].as_py() for name in columns
                }
        seen += batch.num_rows
    return kept
