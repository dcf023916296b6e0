"""What comes out of a pipeline of decoders: a report for each shard, and where it is asked for, one comparison more.

The comparison with AR decoding needs the pair, and an actor has it: so the pipeline's last block is no shard but a
question, which waits at the gate until all shards are written and the run is closed. Whoever takes it compares with
what it has loaded. It is tried once: a worker that dies of it is not asked again.
"""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from cmasd.io.plan import Plan, Shard
from cmasd.pipeline.baseline import Compare, Compared
from cmasd.pipeline.report import ShardReport

QUESTION = Shard(file=-1, index=-1, start=0, stop=0)
"""In place of a shard."""
NOT_COMPARED = "baseline.rows: not compared with AR decoding ({why}). The run is complete."

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """What an actor is asked at the end."""

    plan: Plan
    compare: Compare
    gate: Any
    """Which knows whether it was asked before."""

    def answer(self, with_pair: Callable[["Question"], Compared]) -> pa.Table:
        """Whatever comes of it is no failure of the pipeline; `with_pair` compares."""
        import ray

        from cmasd.pipeline.failures import cause_of

        try:
            is_first = bool(ray.get(self.gate.is_first.remote()))
            result, notices = with_pair(self) if is_first else (None, [NOT_COMPARED.format(why="a worker died of it")])
        except Exception as error:  # noqa: BLE001 - as said
            _log.info("the comparison with AR decoding failed", exc_info=error)
            result, notices = None, [NOT_COMPARED.format(why=cause_of(error))]
        return to_table((result, notices))


def is_question(block: pa.Table) -> bool:
    """Whether a block is none of shards."""
    return block["file"].to_pylist() == [QUESTION.file]


def to_table(answer: Compared) -> pa.Table:
    """Of the same shape as reports."""
    return pa.table({"report": pa.array([json.dumps({"compared": answer})], pa.string())})


def answer_in(table: pa.Table) -> Compared | None:
    """None where the table holds reports."""
    for text in table["report"].to_pylist():
        values = json.loads(str(text))
        if "compared" in values:
            result, notices = values["compared"]
            return result, notices
    return None


class Decoding:
    """A pipeline that is under way."""

    def __init__(self, tables: Iterator[pa.Table], gate: Any, shards: int, on_end: Callable[[], object]) -> None:
        """`shards` are to come; `on_end` is called when the pipeline is done, or given up."""
        self._tables, self._gate, self._left, self._on_end = tables, gate, shards, on_end
        self._is_asked = False

    def reports(self) -> Iterator[ShardReport]:
        """One for each shard; fewer once told to stop."""
        while self._left > 0 and (table := next(self._tables, None)) is not None:
            for report in ShardReport.from_table(table):
                self._left -= 1
                self._gate.leave.remote()
                yield report

    def compare(self) -> Compared:
        """By one of its actors, when all reports are there."""
        self._ask(True)
        for table in self._tables:
            if (answer := answer_in(table)) is not None:
                return answer
        return None, [NOT_COMPARED.format(why="no worker was left")]

    def _ask(self, wanted: bool) -> None:
        if not self._is_asked:
            self._is_asked = True
            self._gate.ask.remote(wanted)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Let the pipeline come to its end, unless something has failed."""
        try:
            if kind is None:
                self._ask(False)
                for _ in self._tables:
                    pass
        finally:
            self._on_end()
