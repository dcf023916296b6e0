"""The keys of how a job runs: its actors, what it records and says, and when it gives up."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ActorsConfig:
    """How many engines, and what each may use."""

    local: Literal["auto", True, False] = "auto"
    """Whether one engine decodes in the driver's own process, without Ray, on all processors: for inputs that are
    decoded before a cluster has started. `auto`: 1,000 rows at most, for one actor, where no cluster is named, unless
    an earlier start of the run died: a Ray finds a row that kills its worker."""
    count: int | None = None
    """Fixed number of actors; null: between `min` and `max`."""
    min: int = 1
    """Fewest actors when the pool scales."""
    max: int = 1
    """Most actors when the pool scales."""
    cpus_each: float = 1.0
    """CPUs reserved, and CPU threads used, per actor."""
    gpus_each: float | None = None
    """GPUs reserved per actor; null: 1 when the cluster has a GPU, else 0."""
    shards_in_flight: int | None = None
    """Shards an actor works on at once, so that slots stay full; null: 16 times the slots in rows."""


@dataclass(frozen=True)
class TelemetryConfig:
    """How much is recorded per row."""

    level: Literal["none", "iteration", "token"] = "token"
    """`none`: row totals; `iteration`: draft lengths and rejections too; `token`: everything."""
    teacher_top_k: int = 0
    """Most likely tokens of the verifier kept for each output token, to train a drafter on; 0: none."""
    keep_source: Literal["samples", "all", "none"] = "samples"
    """Rows whose source is kept beside the output, as `source_text`, whether or not `input.keep_columns` names it:
    `samples`: some of each shard, which a report shows; null in the others."""


@dataclass(frozen=True)
class LoggingConfig:
    """What driver and actors write to stderr."""

    format: Literal["text", "json"] = "text"
    """`text`: lines for people; `json`: one object a line, with run, actor and shard; progress then comes so, too."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is written."""


@dataclass(frozen=True)
class NotifyConfig:
    """Who is told when a run has ended, well or not; `${oc.env:NAME}` keeps an address out of the file."""

    webhook: str | None = None
    """Address that gets state, exit code and summary in a POST, as JSON; null: none."""
    command: str | None = None
    """Shell command that gets the same JSON on its stdin; null: none."""
    timeout_seconds: float = 10.0
    """For one of two tries of the webhook; the command may take six times as long."""


@dataclass(frozen=True)
class LimitsConfig:
    """When a run gives up."""

    max_failed_fraction: float = 0.05
    """Share of rows that may end in an error before the run stops with exit code 3."""
    max_actor_restarts: int = 2
    """Times a worker may die decoding a shard before the shard is halved to find the row, and a row before it is
    recorded as an error; beyond as many deaths while models load, the run ends."""
    drain_seconds: float = 25.0
    """After SIGTERM or Ctrl-C, time to finish and keep the shards being decoded; a second signal stops at once."""
