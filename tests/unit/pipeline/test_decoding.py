"""A pipeline's reports, and the comparison that the last of its actors makes with the pair it has loaded."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest

from cmasd.io.lease import Watch
from cmasd.io.plan import Shard
from cmasd.pipeline import decoding
from cmasd.pipeline import decoding_actor as actor
from cmasd.pipeline.blocks import to_block
from cmasd.pipeline.decoding import QUESTION, Decoding, Question, answer_in, is_question, to_table
from cmasd.pipeline.decoding_actor import DecodingActor
from cmasd.pipeline.gate import Gate, StartLimits
from cmasd.pipeline.preemption import Preemption
from cmasd.pipeline.report import ShardReport
from cmasd.pipeline.source import LastTask
from cmasd.telemetry.stats import EngineStats
from cmasd.telemetry.totals import Totals


class Called:
    """A method of an actor."""

    def __init__(self, notes: list[Any], name: str, answer: Any) -> None:
        self._notes, self._name, self._answer = notes, name, answer

    def remote(self, *given: Any) -> Any:
        self._notes.append((self._name, *given))
        return self._answer


class StubGate:
    """Of which `ray.get` gives what it answers."""

    def __init__(self, **answers: Any) -> None:
        self.calls: list[Any] = []
        for name in ("leave", "ask", "wanted", "is_first"):
            setattr(self, name, Called(self.calls, name, answers.get(name)))


def report(index: int) -> pa.Table:
    totals, stats = Totals.from_dict({}), EngineStats()
    return ShardReport.to_table([ShardReport(Shard(0, index, 0, 4), totals, "a", 1.0, stats, [], None)])


def pipeline(tables: list[pa.Table], shards: int) -> tuple[Decoding, StubGate, list[str], Iterator[pa.Table]]:
    gate, ended, source = StubGate(), list[str](), iter(tables)
    return Decoding(source, gate, shards, on_end=lambda: ended.append("ended")), gate, ended, source


ANSWER = ({"speedup": 2.0}, ["said"])


def test_reports_stop_before_the_question_and_the_answer_comes_when_asked() -> None:
    run, gate, ended, _ = pipeline([report(0), report(1), to_table(ANSWER)], shards=2)
    with run:
        assert [one.shard.index for one in run.reports()] == [0, 1]
        assert gate.calls == [("leave",), ("leave",)]
        result, notices = run.compare()
        assert gate.calls[2:] == [("ask", True)]
    assert result is not None
    assert result == {"speedup": 2.0}
    assert (notices, ended) == (["said"], ["ended"])
    assert gate.calls[3:] == [], "asked once"


def test_who_is_not_asked_lets_the_pipeline_end() -> None:
    run, gate, ended, source = pipeline([report(0), report(1)], shards=1)
    with run:
        assert len(list(run.reports())) == 1
    assert gate.calls[-1] == ("ask", False)
    assert (list(source), ended) == ([], ["ended"])


def test_after_a_failure_nothing_is_waited_for() -> None:
    run, gate, ended, source = pipeline([report(0), report(1)], shards=2)
    next(run.reports())
    run.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert ("ask", False) not in gate.calls
    assert (len(list(source)), ended) == (1, ["ended"])


def test_without_a_worker_there_is_a_notice() -> None:
    run, _, _, _ = pipeline([report(0)], shards=1)
    list(run.reports())
    assert run.compare() == (
        None,
        ["baseline.rows: not compared with AR decoding (no worker was left). The run is complete."],
    )


def refuse(question: Question) -> Any:
    raise MemoryError("no room\nat all")


@pytest.mark.parametrize(
    ("is_first", "with_pair", "expected"),
    [
        (True, lambda question: ANSWER, ANSWER),
        (False, lambda question: ANSWER, (None, "a worker died of it")),
        (True, refuse, (None, "MemoryError: no room")),
    ],
)
def test_an_answer_is_never_a_failure_of_the_pipeline(
    is_first: bool, with_pair: Callable[[Question], Any], expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.get", lambda answer: answer)
    found = answer_in(Question(cast(Any, None), cast(Any, None), StubGate(is_first=is_first)).answer(with_pair))
    assert found is not None
    assert found[0] == expected[0]
    if expected[0] is None:
        assert found[1] == [decoding.NOT_COMPARED.format(why=expected[1])]


def test_an_actor_answers_with_the_pair_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.get", lambda answer: answer)
    monkeypatch.setattr(actor, "set_torch_threads", lambda cpus: None)

    def compared(pair: Any, config: Any, plan: Any, compare: Any) -> Any:
        return {"pair": pair, "plan": plan, "compare": compare}, []

    monkeypatch.setattr(actor, "compare_with", compared)
    monkeypatch.setattr(DecodingActor, "pair", "the loaded one")
    one: Any = DecodingActor.__new__(DecodingActor)
    one._config = cast(Any, type("C", (), {"actors": type("A", (), {"cpus_each": 1.0})}))
    one._question = Question(cast(Any, "plan"), cast(Any, "way"), StubGate(is_first=True))
    one._preemption = Preemption(1.0, lambda: None)
    assert answer_in(one(to_block(QUESTION, pa.table({})))) == (
        {"pair": "the loaded one", "plan": "plan", "compare": "way"},
        [],
    )
    assert not is_question(to_block(Shard(0, 0, 0, 1), pa.table({"id": ["a"]})))


@pytest.mark.parametrize(("wanted", "blocks"), [(True, 1), (False, 0)])
def test_the_last_task_hands_out_the_question_when_it_is_wanted(
    wanted: bool, blocks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.wait", lambda asked, timeout: (asked, []))
    monkeypatch.setattr("ray.get", lambda answer: answer)
    found = list(LastTask(Watch(str(tmp_path), 1), StubGate(wanted=wanted))())
    assert [is_question(block) for block in found] == [True] * blocks


def test_the_gate_passes_the_question_on_once() -> None:
    async def check(lost: bool) -> list[bool]:
        gate = Gate(StartLimits(1, 1, 1), lost_its_state=lambda: lost)
        waiting = asyncio.ensure_future(gate.wanted())
        await asyncio.sleep(0.01)
        early = waiting.done()
        if not lost:
            await gate.ask(True)
        return [early, await asyncio.wait_for(waiting, 1), await gate.is_first(), await gate.is_first()]

    assert asyncio.run(check(lost=False)) == [False, True, True, False]
    assert asyncio.run(check(lost=True)) == [True, False, False, False], "what was said before is not known"


def test_an_answer_travels_as_json() -> None:
    assert json.loads(to_table((None, []))["report"].to_pylist()[0] or "") == {"compared": [None, []]}
