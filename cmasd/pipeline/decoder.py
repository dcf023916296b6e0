"""The actor: a shard of texts in, its Parquet file written, one row of statistics out.

Several calls run at once, one per shard in flight, each in its own thread: text work and writing happen there, the
models run in the engine's thread. The actor writes outputs itself, so that no token telemetry passes through the
object store and a shard is kept the moment it is decoded.
"""

import threading
import time
import uuid
from collections.abc import Sequence

import pyarrow as pa

from cmasd.config.tree import Config
from cmasd.core import Result, RowError
from cmasd.io.plan import Shard
from cmasd.io.run_folder import RunFolder
from cmasd.io.shards import kept_columns
from cmasd.pipeline.engine_thread import EngineThread
from cmasd.pipeline.report import ShardReport
from cmasd.pipeline.source import from_block
from cmasd.runner.text import TextCodec
from cmasd.telemetry.recorder import Row, record
from cmasd.telemetry.timing import ShardTiming
from cmasd.telemetry.totals import Totals


class Decoder:
    """Callable on blocks of shards, from several threads."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._folder = RunFolder(config.output.path)
        self._engine = EngineThread(config)
        self._text_lock = threading.Lock()
        self._ready_at: float | None = None
        self._name = uuid.uuid4().hex[:12]

    def __call__(self, block: pa.Table) -> pa.Table:
        """Decode and write every shard of the block."""
        codec = self._engine.pair.codec
        self._ready_at = self._ready_at or time.time()
        reports = []
        for shard, rows in from_block(block):
            assert rows.num_rows == shard.rows, f"{shard.output_name} has {rows.num_rows} rows, planned {shard.rows}"
            started_at = time.time()
            decoded = self._decode(codec, rows)
            table = record(decoded, self._config.telemetry.level, kept_columns(rows))
            timing = ShardTiming(self._name, started_at, time.time() - started_at)
            totals = self._folder.write_shard(shard, table, timing)
            reports.append(self._report(shard, totals, decoded))
        return ShardReport.to_table(reports)

    def _report(self, shard: Shard, totals: Totals, rows: Sequence[Row]) -> ShardReport:
        failures = (f"{row.id}: {row.result}" for row in rows if isinstance(row.result, RowError))
        return ShardReport(
            shard=shard,
            totals=totals,
            actor=self._name,
            ready_at=self._ready_at or time.time(),
            stats=self._engine.stats,
            notices=list(self._engine.notices),
            first_failure=next(failures, None),
        )

    def _decode(self, codec: TextCodec, rows: pa.Table) -> list[Row]:
        ids, texts, errors = (rows[name].to_pylist() for name in ("id", "text", "error"))
        good = [i for i, error in enumerate(errors) if error is None]
        outcomes: list[Result | RowError] = [RowError("read", error or "") for error in errors]
        with self._text_lock:  # a fast tokenizer cannot be borrowed by two threads
            sources = codec.encode([texts[i] for i in good])
        ready: list[tuple[int, list[int]]] = []
        for i, source in zip(good, sources, strict=True):
            if isinstance(source, RowError):
                outcomes[i] = source
            else:
                ready.append((i, source))
        results = self._engine.decode([source for _, source in ready])
        with self._text_lock:
            outputs = codec.decode([result.token_ids.tolist() for result in results])
        decoded: dict[int, str] = {}
        for (i, _), result, output in zip(ready, results, outputs, strict=True):
            outcomes[i] = output if isinstance(output, RowError) else result
            decoded[i] = output if isinstance(output, str) else ""
        return [Row(str(ids[i]), outcome, decoded.get(i)) for i, outcome in enumerate(outcomes)]
