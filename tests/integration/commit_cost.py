"""What it costs that each shard is written and noted: throughput with and without, and the CPU time that goes into it.

`python -m tests.integration.commit_cost FOLDER [ROUNDS]` decodes the demo's sentences with the bundled pair through the
whole pipeline, with and without commits by turns, and prints one JSON line. A busy machine moves the throughputs more
than writing does; the share of CPU time moves less.
"""

import json
import logging
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa

from cmasd.config import from_dict
from cmasd.io.lease import Watch
from cmasd.io.runs import look_at
from cmasd.pipeline import decoding_actor
from cmasd.pipeline.actors import decode_shards
from cmasd.pipeline.cluster import connected, resources, start_local
from cmasd.pipeline.tally import Tally

ROOT = Path(__file__).parents[2]
SENTENCES = ROOT / "configs" / "demo" / "sentences.jsonl"
COPIES = 2
"""Of the demo's sentences, per run."""


def measuring(base: Any, commits: bool) -> Any:
    """A decoder that says how much CPU time its writing took; without commits it leaves that out. Travels by value."""

    class Measuring(base):  # type: ignore[misc]
        def __init__(self, config: Any, watch: Any) -> None:
            super().__init__(config, watch)
            self.seconds = 0.0
            folder = self._folder
            if commits:
                for holder, name in ((folder, "write_shard"), (folder, "write_json"), (folder.storage, "delete")):
                    self.time(holder, name)
                return
            from cmasd.telemetry.totals import Totals

            folder.write_shard = lambda shard, table, timing=None: Totals.of(table)
            self._crashes.decode = lambda shard, rows, decode: (decode(rows), [])

        def time(self, holder: Any, name: str) -> None:
            act = getattr(holder, name)

            def timed(*args: Any, **options: Any) -> Any:
                before = time.thread_time()
                try:
                    return act(*args, **options)
                finally:
                    self.seconds += time.thread_time() - before

            setattr(holder, name, timed)

        def __call__(self, block: pa.Table) -> pa.Table:
            from cmasd.pipeline.report import ShardReport

            reports = ShardReport.from_table(super().__call__(block))
            for report in reports:
                report.notices[:] = [str(self.seconds)]
            return ShardReport.to_table(reports)

    return Measuring


@dataclass
class Cost:
    """Of one run."""

    tokens_per_second: float
    share: float
    """CPU seconds of writing over seconds of decoding."""
    per_shard_ms: float


def run_once(folder: Path, commits: bool) -> Cost:
    folder.mkdir(parents=True)
    (folder / "in.jsonl").write_text(SENTENCES.read_text() * COPIES)
    asked = from_dict(
        {
            "input": {"path": str(folder / "in.jsonl")},
            "output": {"path": str(folder / "run")},
            "models": {"verifier": "en-de/verifier", "drafter": "en-de/drafter"},
            "engine": {"max_new_tokens": 96},
        }
    )
    state, spent = look_at(asked), []
    tally = Tally(state.plan.rows, state.done)
    with patch.object(decoding_actor, "DecodingActor", measuring(decoding_actor.DecodingActor, commits)):
        watch = Watch(asked.output.path, 1)
        for report in decode_shards(asked, state.plan, state.todo, resources(asked.actors, local=True), watch):
            spent.append(float(report.notices.pop()))
            tally.add(report)
    assert tally.rows_left == 0
    assert len(list((folder / "run").rglob("part-*"))) == (len(state.todo) if commits else 0)
    written = max(spent)
    return Cost(tally.now.output_tokens / tally.seconds, written / tally.seconds, 1000 * written / len(state.todo))


def main(folder: Path, rounds: int) -> None:
    import ray

    found: dict[bool, list[Cost]] = {True: [], False: []}
    start_local(logging.CRITICAL, num_cpus=2)
    with connected():
        for turn in range(rounds):
            for commits in (True, False) if turn % 2 else (False, True):
                found[commits].append(run_once(folder / f"{turn}-{commits}", commits))
    ray.shutdown()
    speeds = {commits: [cost.tokens_per_second for cost in found[commits]] for commits in found}
    ratios = [one / other for one, other in zip(speeds[True], speeds[False], strict=True)]
    said = {
        "tokens_per_second_with": [round(speed, 1) for speed in speeds[True]],
        "tokens_per_second_without": [round(speed, 1) for speed in speeds[False]],
        "ratios": [round(ratio, 3) for ratio in ratios],
        "median_ratio": round(statistics.median(ratios), 3),
        "cpu_share_of_committing": [round(cost.share, 5) for cost in found[True]],
        "cpu_ms_per_shard": [round(cost.per_shard_ms, 2) for cost in found[True]],
    }
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 4)
