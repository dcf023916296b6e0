"""Who decoded a shard and when; kept in its output file's footer, beside the totals."""

import json
from dataclasses import asdict, dataclass

METADATA_KEY = "cmasd.timing"


@dataclass(frozen=True)
class ShardTiming:
    """The time of one shard; shards of one actor overlap, because several are in flight."""

    actor: str
    """Differs between all actors, restarted ones included."""
    started_at: float
    """Seconds since the epoch when the actor took the shard."""
    seconds: float
    """From then until its rows were ready to be written."""

    def to_metadata(self) -> dict[str, str]:
        """Key and value for a Parquet footer."""
        return {METADATA_KEY: json.dumps(asdict(self))}

    @property
    def ended_at(self) -> float:
        """Seconds since the epoch."""
        return self.started_at + self.seconds
