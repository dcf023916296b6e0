"""One thread that owns the models and steps the engine; other threads hand it rows and wait for their results.

All use of the models happens in this thread. Rows of several shards are in the engine together, so its slots stay
full across shard borders. The first failure, of loading or of a step, is what every later call raises.
"""

import itertools
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cmasd.config.running import ActorsConfig
from cmasd.config.tree import Config
from cmasd.core import Request, Result
from cmasd.errors import CmasdError, DecodingError
from cmasd.io.memories import memories_before
from cmasd.pipeline.backlog import Backlog
from cmasd.pipeline.estimate import note_steps
from cmasd.pipeline.metrics import EngineMetrics
from cmasd.telemetry.stats import EngineStats

if TYPE_CHECKING:
    from cmasd.engine import Engine, Pair

_log = logging.getLogger(__name__)

ROWS_AHEAD_PER_SLOT = 2
"""The rows being decoded, and one batch to take their places; all others wait where they can still be sorted."""

STOP_SECONDS = 10.0
"""Waited for a step under way to end: an interpreter that exits while a thread computes may crash."""

KEPT_EVERY_SECONDS = 60.0
"""What the policy has learned, for later runs; and whenever there is nothing to decode."""


@dataclass
class _Job:
    """The rows of one call."""

    first_key: int
    results: list[Result | None]
    future: "Future[list[Result]]" = field(default_factory=Future)
    missing: int = 0


class EngineThread:
    """Loads the pair, then decodes what is submitted, until the process ends."""

    def __init__(self, config: Config, actor: str = "", loading: AbstractContextManager[None] | None = None) -> None:
        """`actor` names this engine in metrics; `loading` is entered while models load, and may refuse."""
        self._config = config
        self._loading = loading or nullcontext()
        self._actor = actor
        self._inbox: queue.Queue[tuple[_Job, list[Request]]] = queue.Queue()
        self._jobs: dict[int, _Job] = {}
        self._keys = itertools.count()
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._pair: Future[Pair] = Future()
        self._draining = threading.Event()
        self._waiting: set[Future[list[Result]]] = set()
        self.notices: list[str] = []
        """What users should know of the pair and of its engine; complete when `pair` is there."""
        self.stats = EngineStats()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the models are loaded, or have failed to: then `pair` and `decode` raise why."""
        self._pair.exception()

    @property
    def pair(self) -> "Pair":
        """Waits until the models are loaded."""
        return self._pair.result()

    def decode(self, sources: Sequence[list[int]], previous: Sequence[list[int] | None] | None = None) -> list[Result]:
        """Results in the order of `sources`; waits for the slowest. `previous`: what an earlier run made of them."""
        if not sources:
            return []
        most_tokens = self.pair.max_new_tokens
        with self._lock:
            if self._failure is not None:
                raise self._failure
            keys = [next(self._keys) for _ in sources]
            job = _Job(keys[0], [None] * len(sources), missing=len(sources))
            requests = [
                Request(key, source, most_tokens, before)
                for key, source, before in zip(keys, sources, previous or [None] * len(sources), strict=True)
            ]
            self._waiting.add(job.future)
            self._inbox.put((job, requests))
        try:
            return job.future.result()
        finally:
            with self._lock:
                self._waiting.discard(job.future)

    def drain(self) -> None:
        """Finish what was submitted shard by shard: the process is about to end."""
        self._draining.set()

    def stop(self) -> None:
        """Decode nothing more: whoever waits for results, or asks for some, is told so by `CancelledError` at once."""
        with self._lock:
            self._failure = CancelledError("told to stop")
            waiting = list(self._waiting)
        for future in waiting:
            future.cancel()
        if waiting:
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # noqa: BLE001 - handed to every waiting thread, which raises it
            failure = error if isinstance(error, CmasdError) else DecodingError(describe(error))
            failure.__cause__ = None if failure is error else error
            _log.error("the engine failed: %s", failure, exc_info=error)
            self._fail(failure)

    def _loop(self) -> None:
        from cmasd.engine import Engine, load_pair
        from cmasd.engine.capacity import resolve
        from cmasd.models.allocator import keep_freed_memory

        started = time.monotonic()
        metrics = EngineMetrics(self._config.output.path, self._actor)
        keep_freed_memory()
        set_torch_threads(self._config.actors.cpus_each)
        with self._loading:
            pair = load_pair(self._config)
            config = resolve(pair, self._config, engines=engines_beside(self._config.actors, pair.device.type))
            engine = Engine(pair, config)
            engine.warm_up()
            engine.experience.recall()
            remembered = sum(
                engine.remember(memories.read(pair.codec.vocabulary)) for memories in memories_before(self._config)
            )
        note_step_table(self._config, engine)
        self.notices = [*pair.notices, *slots_notice(self._config, config)]
        if remembered:
            self.notices.append(f"memory: begins with {remembered:,} output tokens of earlier rows.")
        metrics.loaded(time.monotonic() - started)
        _log.info("models loaded in %.1f s", time.monotonic() - started)
        self._pair.set_result(pair)
        slots = config.engine.slots
        assert slots is not None, "resolved"
        backlog, kept_at, has_news = Backlog(), time.monotonic(), False
        while not isinstance(self._failure, CancelledError):
            is_idle = engine.pending == 0 and not backlog
            is_due = is_idle or time.monotonic() - kept_at > KEPT_EVERY_SECONDS
            if has_news and is_due:
                engine.experience.keep()
                kept_at, has_news = time.monotonic(), False
            for job, requests in self._arrivals(block=is_idle):
                self._jobs |= dict.fromkeys((request.key for request in requests), job)
                backlog.add(requests)
            if self._draining.is_set():
                backlog.drain()
            while backlog and engine.pending < ROWS_AHEAD_PER_SLOT * slots:
                engine.submit(backlog.take(slots))
            finished, has_news = engine.step(), True
            self.stats = engine.stats
            metrics.stepped(engine.stats, engine.pending + len(backlog), slots)
            for result in finished:
                self._deliver(result)

    def _arrivals(self, block: bool) -> list[tuple[_Job, list[Request]]]:
        arrivals = [self._inbox.get()] if block else []
        while not self._inbox.empty():
            arrivals.append(self._inbox.get_nowait())
        return arrivals

    def _deliver(self, result: Result) -> None:
        job = self._jobs.pop(result.key)
        job.results[result.key - job.first_key] = result
        job.missing -= 1
        if job.missing == 0 and job.future.set_running_or_notify_cancel():
            job.future.set_result([done for done in job.results if done is not None])

    def _fail(self, failure: BaseException) -> None:
        with self._lock:
            self._failure = failure
        waiting = {id(job): job for job in self._jobs.values()}
        waiting |= {id(job): job for job, _ in self._arrivals(block=False)}
        for job in waiting.values():
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(failure)
        if not self._pair.done():
            self._pair.set_exception(failure)


def note_step_table(config: Config, engine: "Engine") -> None:
    """For the estimates of `cmasd plan`, where the policy has measured one."""
    from cmasd.policies import GoodputPolicy

    table = engine.policy.costs if isinstance(engine.policy, GoodputPolicy) else None
    if table is not None:
        note_steps(config, engine.shape.slots, table.rows, [by_window[0] for by_window in table.verify])


def engines_beside(config: ActorsConfig, device: str) -> int:
    """How many actors may share this one's memory: those of one GPU, or those that the machine's CPUs allow."""
    most = config.count or config.max
    if device == "cuda":
        return max(1, min(most, math.floor(1 / config.gpus_each))) if config.gpus_each else 1
    return max(1, min(most, math.floor((os.cpu_count() or 1) / config.cpus_each)))


def slots_notice(asked: Config, chosen: Config) -> list[str]:
    """Names the numbers that were left to the engine."""
    told = [] if asked.engine.slots is not None else [f"engine.slots: {chosen.engine.slots} rows fit into memory."]
    if asked.engine.cache_tokens is None and (tokens := chosen.engine.cache_tokens) is not None:
        told.append(f"engine.cache_tokens: rows of {tokens:,} tokens together fit into memory; beyond them rows wait.")
    return told


def set_torch_threads(cpus: float) -> None:
    """As many threads as CPUs are reserved; more would take them from other actors."""
    import torch

    torch.set_num_threads(max(1, math.ceil(cpus)))


def describe(error: BaseException) -> str:
    """Class and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
