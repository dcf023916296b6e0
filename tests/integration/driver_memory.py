"""A whole run, Ray Data included, whose actor writes an error for each row instead of decoding: what the driver keeps.

`python -m tests.integration.driver_memory FOLDER ROWS [ROWS_PER_SHARD]` prints one JSON line; without a size, shards
have that of a real run of so many rows. Memory is the driver's own, resident; `mb_before` is that of an idle driver.
"""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from cmasd.config import from_dict
from cmasd.io.lease import Watch
from cmasd.io.plan import default_rows_per_shard
from cmasd.pipeline import decoding_actor
from cmasd.pipeline.cluster import start_local
from cmasd.pipeline.run import Watcher, run
from cmasd.pipeline.tally import Progress


def writer() -> type:
    """Travels by value."""

    class Writer:
        def __init__(self, config: Any, watch: Watch) -> None:
            from cmasd.io.run_folder import RunFolder

            self.folder = RunFolder(config.output.path)

        def __call__(self, block: pa.Table) -> pa.Table:
            from cmasd.core import RowError
            from cmasd.pipeline.blocks import from_block
            from cmasd.pipeline.report import ShardReport
            from cmasd.telemetry.recorder import Row, record
            from cmasd.telemetry.stats import EngineStats

            about: Any = ("writer", 1.0, EngineStats(), [], None)
            reports = []
            for shard, rows in from_block(block):
                failed = [Row(str(one), RowError("read", "no"), None) for one in rows["id"].to_pylist()]
                reports.append(ShardReport(shard, self.folder.write_shard(shard, record(failed, "none")), *about))
            return ShardReport.to_table(reports)

    return Writer


class Largest(Watcher):
    """Memory as it grows."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.bytes = 0
        self.done = 0

    def progress(self, progress: Progress) -> None:
        self.done += 1
        if self.done % 20 == 0:
            self.look()

    def look(self) -> int:
        now = int(self.process.memory_info().rss)
        self.bytes = max(self.bytes, now)
        return now


def main(folder: Path, rows: int, rows_per_shard: int | None) -> None:
    import ray

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "in.jsonl").open("w") as stream:
        stream.writelines(json.dumps({"text": f"row {row}"}) + "\n" for row in range(rows))
    asked = from_dict(
        {
            "input": {"path": str(folder / "in.jsonl")},
            "output": {"path": str(folder / "run"), "rows_per_shard": rows_per_shard},
            "limits": {"max_failed_fraction": 1.0},
            "actors": {"shards_in_flight": 8},
        }
    )
    decoding_actor.DecodingActor = writer()  # type: ignore[misc, assignment]
    start_local(logging.CRITICAL, num_cpus=2)
    largest = Largest()
    ray.get(ray.remote(lambda: None).remote())
    before, started = largest.look(), time.monotonic()
    summary = run(asked, watcher=largest)
    largest.look()
    seconds = time.monotonic() - started
    ray.shutdown()
    assert summary["rows"] == rows
    shards = -(-rows // (rows_per_shard or default_rows_per_shard(rows)))
    memory = {"mb_before": before / 1e6, "mb_at_most": largest.bytes / 1e6}
    sys.stdout.write(json.dumps({"rows": rows, "shards": shards, **memory, "seconds": round(seconds, 1)}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
