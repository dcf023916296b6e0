"""The thread that owns the models: rows of several callers at once, and what happens when it fails."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from cmasd.config import Config, from_dict
from cmasd.core import Request, Result
from cmasd.errors import DecodingError, ModelError
from cmasd.pipeline.engine_thread import EngineThread, engines_beside
from cmasd.policies import PlainPolicy, Policy
from cmasd.telemetry.stats import EngineStats


@dataclass
class Pair:
    max_new_tokens: int = 3
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    notices: tuple[str, ...] = ("about the pair",)


class Diary:
    """Stands in for what is learned."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.kept = threading.Event()

    def recall(self) -> bool:
        self.done.append("recalled")
        return True

    def keep(self) -> None:
        self.done.append("kept")
        self.kept.set()


@dataclass
class Echo:
    """Finishes rows one per step, newest first: the hardest order for whoever sorts them back."""

    pair: Pair
    config: Config
    rows: list[Request] = field(default_factory=list)
    stats: EngineStats = field(default_factory=EngineStats)
    threads: set[int] = field(default_factory=set)
    warm: bool = False
    policy: Policy = field(default_factory=PlainPolicy)
    experience: "Diary" = field(default_factory=lambda: Diary())

    def warm_up(self) -> None:
        assert not self.rows
        self.warm = True

    @property
    def pending(self) -> int:
        return len(self.rows)

    def submit(self, requests: list[Request]) -> None:
        self.rows += requests

    def step(self) -> list[Result]:
        self.threads.add(threading.get_ident())
        assert len(self.threads) == 1
        assert self.warm
        row = self.rows.pop()
        if 666 in row.source:
            raise RuntimeError("boom\nsecond line")
        ids = np.array(row.source, dtype=np.int32)
        return [Result(row.key, ids, "stop", len(ids), 1, 0, 0, float("nan"), 0.0, None, None)]


def seven_slots(pair: Pair, config: Config, engines: int) -> Config:
    """Stands in for counting memory."""
    return config if config.engine.slots else replace(config, engine=replace(config.engine, slots=7))


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr("cmasd.engine.Engine", Echo)
    monkeypatch.setattr("cmasd.engine.load_pair", lambda config: Pair())
    monkeypatch.setattr("cmasd.engine.capacity.resolve", seven_slots)
    return from_dict({"input": {"path": "i"}, "output": {"path": "o"}})


def ids(results: list[Result]) -> list[list[int]]:
    return [result.token_ids.tolist() for result in results]


def test_what_was_learned_is_recalled_before_the_first_row_and_kept_behind_the_last(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = Diary()
    monkeypatch.setattr("cmasd.engine.Engine", lambda pair, config: Echo(pair, config, experience=diary))
    engine = EngineThread(config)
    engine.wait()
    assert diary.done == ["recalled"], "before there is anything new nothing is written"
    engine.decode([[1], [2]])
    assert diary.kept.wait(30)


def test_many_callers_get_their_own_rows_in_order(config: Config) -> None:
    engine = EngineThread(config)
    calls = [[[call, row] for row in range(call % 5)] for call in range(40)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(engine.decode, calls))
    assert [ids(answer) for answer in answers] == calls


def test_a_failing_step_reaches_every_waiting_and_every_later_call(config: Config) -> None:
    engine = EngineThread(config)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(engine.decode, [[666]] * 3) for _ in range(4)]
        errors: list[Any] = [future.exception(timeout=30) for future in futures]
    assert {(type(error), str(error)) for error in errors} == {(DecodingError, "RuntimeError: boom")}
    with pytest.raises(DecodingError, match="boom"):
        engine.decode([[1]])


def test_a_pair_that_cannot_be_loaded_is_the_users_error(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: Config) -> Pair:
        raise ModelError("models.verifier: no such folder")

    monkeypatch.setattr("cmasd.engine.load_pair", fail)
    engine = EngineThread(config)
    with pytest.raises(ModelError, match="no such folder"):
        engine.decode([[1]])
    with pytest.raises(ModelError, match="no such folder"):
        _ = engine.pair


def test_a_number_of_slots_that_was_left_open_is_told(config: Config) -> None:
    told = EngineThread(config)
    assert told.pair.max_new_tokens == 3
    assert told.notices == ["about the pair"]
    left_open = EngineThread(replace(config, engine=replace(config.engine, slots=None)))
    assert left_open.pair.max_new_tokens == 3
    assert left_open.notices == ["about the pair", "engine.slots: 7 rows fit into memory."]


@pytest.mark.parametrize(
    ("actors", "device", "expected"),
    [
        ({"count": 8, "cpus_each": 2.0}, "cpu", 2),
        ({"count": 1, "cpus_each": 0.5}, "cpu", 1),
        ({"max": 3, "cpus_each": 0.5}, "cpu", 3),
        ({"count": 9, "cpus_each": 16.0}, "cpu", 1),
        ({"count": 9}, "cuda", 1),
        ({"count": 9, "gpus_each": 0.25}, "cuda", 4),
        ({"count": 2, "gpus_each": 0.25}, "cuda", 2),
        ({"count": 2, "gpus_each": 2.0}, "cuda", 1),
    ],
)
def test_actors_that_share_a_memory(
    actors: dict[str, Any], device: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    asked = from_dict({"input": {"path": "i"}, "output": {"path": "o"}, "actors": actors})
    assert engines_beside(asked.actors, device) == expected
