"""The actor: a shard of texts in, its Parquet file written, one row of statistics out.

Several calls run at once, one per shard in flight, each in its own thread: text work and writing happen there, the
models run in the engine's thread. The actor writes outputs itself, so that no token telemetry passes through the
object store and a shard is kept the moment it is decoded. An actor that is killed hands its shards back by dying: Ray
starts another and gives it the same shards, of which at most the writing had been done. One that is preempted
(SIGTERM) first finishes what it has begun (`cmasd.pipeline.preemption`).
"""

import logging
import threading
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from cmasd.codecs.text import TextCodec
from cmasd.config.tree import Config
from cmasd.core import Result, RowError
from cmasd.io.earlier import Id, earlier_run
from cmasd.io.formats.recordings import shown
from cmasd.io.lease import Watch
from cmasd.io.memories import Rows, own_memories
from cmasd.io.outputs import Position
from cmasd.io.plan import Shard
from cmasd.io.run_folder import RunFolder
from cmasd.io.shards import kept_columns
from cmasd.pipeline import logs
from cmasd.pipeline.baseline import Compared, compare_with
from cmasd.pipeline.blocks import from_block
from cmasd.pipeline.crashes import Crashes
from cmasd.pipeline.decoding import Question, is_question
from cmasd.pipeline.engine_thread import EngineThread, set_torch_threads
from cmasd.pipeline.metrics import ShardMetrics
from cmasd.pipeline.preemption import Preemption
from cmasd.pipeline.report import ShardReport
from cmasd.telemetry.clock import ShardTiming
from cmasd.telemetry.recorder import Row, record, samples
from cmasd.telemetry.totals import Totals

if TYPE_CHECKING:
    from cmasd.engine import Pair

_log = logging.getLogger(__name__)


class DecodingActor:
    """Callable on blocks of shards, from several threads."""

    def __init__(
        self, config: Config, watch: Watch, owns_process: bool = True, question: Question | None = None
    ) -> None:
        """`owns_process`: log lines and SIGTERM are the actor's, not those of a driver that decodes by itself."""
        self._question = question
        self._name = uuid.uuid4().hex[:12]
        if owns_process:
            logs.configure(config, actor=self._name)
        self._config = config
        self._watch = watch
        self._folder = RunFolder(config.output.path)
        self._crashes = Crashes(self._folder, config.limits.max_actor_restarts)
        loading = self._crashes.loading(self._name, config.actors.count or config.actors.max)
        self._engine = EngineThread(config, self._name, loading)
        self._preemption = Preemption(config.limits.drain_seconds, self._leave)
        if owns_process:
            self._preemption.listen()
        watch.on_stop(self._engine.drain)
        self._earlier = earlier_run(config)
        self._memories = own_memories(config)
        self._metrics = ShardMetrics(config.output.path, self._name)
        self._text_lock = threading.Lock()
        self._engine.wait()  # an actor that counts as ready can decode; a failure is raised by the first shard
        self._ready_at = time.time()

    @property
    def pair(self) -> "Pair":
        """What is loaded; raises why it is not."""
        return self._engine.pair

    def stop(self) -> None:
        """Leave the shards that are begun to the next start."""
        self._engine.stop()

    def _leave(self) -> None:
        self._engine.drain()
        self._crashes.leave()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Decode and write every shard of the block; once told to stop, leave it for the next start."""
        with self._preemption.begun():
            if self._question is not None and is_question(block):
                return self._question.answer(self._compare)
            return ShardReport.to_table([] if self._watch.says_stop() else self._decode_block(block))

    def _compare(self, question: Question) -> Compared:
        """With the pair that has decoded."""
        set_torch_threads(self._config.actors.cpus_each)
        return compare_with(self.pair, self._config, question.plan, question.compare)

    def _decode_block(self, block: pa.Table) -> list[ShardReport]:
        codec = self._engine.pair.codec
        reports = []
        for shard, rows in from_block(block):
            with logs.about(shard=shard.output_name):
                report = self._decode_shard(codec, shard, rows)
            if report is None:
                break
            reports.append(report)
        return reports

    def _decode_shard(self, codec: TextCodec, shard: Shard, rows: pa.Table) -> ShardReport | None:
        """None where the driver is gone, and another does this shard again, perhaps by another plan."""
        assert rows.num_rows == shard.rows, f"{shard.output_name} has {rows.num_rows} rows, planned {shard.rows}"
        started_at = time.time()
        said: Rows = []
        decoded, notices = self._crashes.decode(
            shard, rows, lambda part: self._decode(codec, part, shard.position, said)
        )
        telemetry = self._config.telemetry
        id_type = rows.schema.field("id").type
        sources = self._sources(decoded, rows)
        table = record(decoded, telemetry.level, kept_columns(rows), telemetry.teacher_top_k, id_type, sources)
        if self._watch.is_superseded():
            return None
        timing = ShardTiming(self._name, started_at, time.time() - started_at)
        totals = self._folder.write_shard(shard, table, timing)
        self._metrics.written(totals)
        if self._memories is not None:
            self._memories.write(shard, said, codec.vocabulary)
        report = self._report(shard, totals, decoded, notices)
        counts = {"rows": totals.rows, "errors": totals.errors, "output_tokens": totals.output_tokens}
        _log.info("shard written", extra={"fields": {**counts, "seconds": round(timing.seconds, 3)}})
        if report.first_failure:
            _log.warning("%d row(s) failed, the first: %s", totals.errors, report.first_failure)
        return report

    def _sources(self, decoded: list[Row], rows: pa.Table) -> list[str | None] | None:
        """What `telemetry.keep_source` keeps of what the rows were decoded from."""
        which = self._config.telemetry.keep_source
        if which == "none":
            return None
        kept = range(len(decoded)) if which == "all" else samples(decoded)
        sources: list[str | None] = [None] * len(decoded)
        for place in kept:
            text = rows["text"][place].as_py()
            sources[place] = None if text is None else shown(text)
        return sources

    def _report(self, shard: Shard, totals: Totals, rows: Sequence[Row], notices: list[str]) -> ShardReport:
        failures = (f"{row.id}: {row.result}" for row in rows if isinstance(row.result, RowError))
        return ShardReport(
            shard=shard,
            totals=totals,
            actor=self._name,
            ready_at=self._ready_at,
            stats=self._engine.stats,
            notices=[*self._engine.notices, *notices],
            first_failure=next(failures, None),
        )

    def _decode(self, codec: TextCodec, rows: pa.Table, near: Position, said: Rows) -> list[Row]:
        """Adds to `said` what is worth being remembered."""
        ids, texts, errors = (rows[name].to_pylist() for name in ("id", "text", "error"))
        good = [i for i, error in enumerate(errors) if error is None]
        outcomes: list[Result | RowError] = [RowError("read", error or "") for error in errors]
        decoded: dict[int, str] = {}
        parts, done = codec.parts([texts[i] for i in good]), 0
        while done < len(good):
            with self._text_lock:  # a fast tokenizer cannot be borrowed by two threads
                sources = next(parts)
            part = list(zip(good[done : done + len(sources)], sources, strict=True))
            done += len(sources)
            found, texts_of = self._decode_part(codec, part, ids, near, said)
            decoded |= texts_of
            for i, outcome in found.items():
                outcomes[i] = outcome
        return [Row(ids[i], outcome, decoded.get(i)) for i, outcome in enumerate(outcomes)]

    def _decode_part(
        self,
        codec: TextCodec,
        part: list[tuple[int, list[int] | RowError]],
        ids: list[Id],
        near: Position,
        said: Rows,
    ) -> tuple[dict[int, Result | RowError], dict[int, str]]:
        """What became of some of a shard's rows, and their texts."""
        outcomes: dict[int, Result | RowError] = {i: source for i, source in part if isinstance(source, RowError)}
        ready = [(i, source) for i, source in part if not isinstance(source, RowError)]
        previous = self._said_before(codec, [ids[i] for i, _ in ready], near)
        results = self._engine.decode([source for _, source in ready], previous)
        for (_, source), result in zip(ready, results, strict=True):
            said.append((list(source), result.token_ids.tolist()))  # a recording has no ids, and is not to be kept
        with self._text_lock:
            outputs = codec.say(results)
        decoded: dict[int, str] = {}
        for (i, _), result, output in zip(ready, results, outputs, strict=True):
            outcomes[i] = output if isinstance(output, RowError) else result
            decoded[i] = output if isinstance(output, str) else ""
        return outcomes, decoded

    def _said_before(self, codec: TextCodec, ids: list[Id], near: Position) -> list[list[int] | None] | None:
        """What an earlier run made of these rows."""
        from cmasd.engine.previous import said_before

        if self._earlier is None:
            return None
        said = self._earlier.of(ids, near)
        with self._text_lock:
            return said_before(codec, said, self._engine.pair.constraints.eos_token_ids)
