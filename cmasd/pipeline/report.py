"""What an actor says about each shard it wrote, as a row of Ray Data."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pyarrow as pa

from cmasd.io.plan import Shard
from cmasd.telemetry.stats import EngineStats
from cmasd.telemetry.totals import Totals


@dataclass(frozen=True)
class ShardReport:
    """One shard, and the state of its actor."""

    shard: Shard
    totals: Totals
    actor: str
    """Differs between all actors, restarted ones included."""
    ready_at: float
    """Seconds since the epoch when the actor's models were loaded."""
    stats: EngineStats
    """Of the actor, since its start."""
    notices: list[str]
    """What users should know about the pair."""
    first_failure: str | None
    """`<id>: <error>` of the shard's first failed row."""

    @staticmethod
    def to_table(reports: Iterable["ShardReport"]) -> pa.Table:
        """One JSON value per row: Arrow need not know the fields."""
        return pa.table({"report": pa.array([json.dumps(asdict(report)) for report in reports], pa.string())})

    @staticmethod
    def from_table(table: pa.Table) -> list["ShardReport"]:
        """The inverse of `to_table`."""
        return [_from_json(str(text)) for text in table["report"].to_pylist()]


def _from_json(text: str) -> ShardReport:
    values = json.loads(text)
    return ShardReport(
        shard=Shard(**values["shard"]),
        totals=Totals.from_dict(values["totals"]),
        actor=values["actor"],
        ready_at=values["ready_at"],
        stats=EngineStats.of(values["stats"]),
        notices=values["notices"],
        first_failure=values["first_failure"],
    )
