"""A Ray to run on: the cluster named by `RAY_ADDRESS` (which `ray job submit` sets), or one in this process.

Ray's own output is silenced, because the job prints its own progress; `CMASD_RAY_LOGS=1` lets it through.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmasd.config.running import ActorsConfig
from cmasd.errors import ConfigError
from cmasd.pipeline.address import check_answers, keep_token_to_ourselves, named, refusal

OBJECT_STORE_BYTES = 400_000_000
"""Of a local Ray: shards wait in it, and they are small."""
START_TRIES = 3
ENVIRONMENT = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray gives its workers the lowest priority but for four; a busy machine would then starve the decoders.
    "RAY_worker_niceness": "0",
    # Its warning about a future change of CUDA_VISIBLE_DEVICES is not for our users.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""For a Ray of our own, and for the driver."""
QUIET_ENVIRONMENT = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Each death of a worker would be told on stdout, once per shard in it, and so would our own stopping of Ray.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "will be retried|worker died or was killed|Terminated with signal 15",
}
"""Unless Ray's own output is wanted."""
FULL_ENOUGH = 0.75
"""Share of an actor's places for shards that are taken when another actor is added; Ray Data's own threshold counts
shards that wait in an actor, and with as many places as shards none do: such a pool would never grow."""


@dataclass(frozen=True)
class Resources:
    """What the actors get."""

    least_actors: int
    most_actors: int
    cpus_each: float
    gpus_each: float
    is_local: bool
    room: int
    """Actors that the cluster has CPUs, or GPUs, for now."""

    def notices(self, config: ActorsConfig, shards: int) -> list[str]:
        """Of a part of the machine that stays idle, unless that was asked for by a fixed number of actors."""
        useful = min(self.room, shards)
        if config.count or useful <= self.most_actors:
            return []
        kind = "GPUs" if self.gpus_each else "CPUs"
        return [f"actors.max: {self.most_actors}, with {kind} for {self.room} actors; actors.max={useful} uses more."]


@contextmanager
def connected() -> Iterator[bool]:
    """Yields whether Ray runs on this machine alone; shuts down what it started.

    A Ray that the caller is connected to already is used as it is, and left so.
    """
    _set_environment()
    import ray

    address = named()
    local = address is None
    level = logging.INFO if logs_wanted() else logging.CRITICAL
    if ray.is_initialized():
        _quieten(level)
        yield local
        return
    handler = signal.getsignal(signal.SIGTERM)
    if address is None:
        start_local(level)
    else:
        _connect(address, level)
    signal.signal(signal.SIGTERM, handler)  # ray.init replaces it by an immediate exit
    _quieten(level)
    try:
        yield local
    finally:
        ray.shutdown()


def _connect(address: str, level: int) -> None:
    """Raises `ConfigError` where that cannot be."""
    import ray

    with _quiet_start():
        check_answers(address)
        try:
            ray.init(address=address, log_to_driver=logs_wanted(), logging_level=level)
        except (ConnectionError, ValueError, ray.exceptions.AuthenticationError) as error:
            raise refusal(address, error) from None


def _set_environment() -> None:
    """Before ray is imported; what the user has set stays."""
    for name, value in (ENVIRONMENT | ({} if logs_wanted() else QUIET_ENVIRONMENT)).items():
        os.environ.setdefault(name, value)


def start_local(level: int, **options: Any) -> None:
    """Ray allows its processes 30 s to start, which a cold, busy machine can exceed; the next try finds warm files."""
    _set_environment()
    keep_token_to_ourselves()
    import ray

    for tries_left in reversed(range(START_TRIES)):
        try:
            with _quiet_start():
                ray.init(
                    address="local",
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    log_to_driver=logs_wanted(),
                    logging_level=level,
                    **options,
                )
            return
        except Exception as error:
            ray.shutdown()
            if not tries_left or "timed out during startup" not in str(error):
                raise


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Ray's native part announces the log level on stderr while it starts, past Python's logging."""
    if logs_wanted():
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def logs_wanted() -> bool:
    """Whether the environment asks for Ray's own output."""
    return os.environ.get("CMASD_RAY_LOGS", "0") not in ("", "0")


def _quieten(level: int) -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = logs_wanted()
    context.print_on_execution_start = logs_wanted()
    # One row is one shard, and a block takes one row: shards stream out of a read task and are never merged.
    context.target_max_block_size = 1
    context.autoscaling_config.actor_pool_util_upscaling_threshold = FULL_ENOUGH
    # Actors go when there is nothing left for them to do, not when their shards are shared out piece by piece.
    context.autoscaling_config.actor_pool_util_downscaling_threshold = 0.0
    # No limit: Ray Data would end a run that waits half an hour for a node, or whose shards take that long.
    context.execution_no_progress_timeout_s = -1.0
    # So that the driver sees the class of an error, not only its text.
    context.raise_original_map_exception = True
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(level)


def resources(config: ActorsConfig, local: bool) -> Resources:
    """Raises `ConfigError` when a Ray that cannot grow lacks what is asked for: it would wait for ever."""
    import ray

    have = ray.cluster_resources()
    gpus_each = config.gpus_each if config.gpus_each is not None else float(have.get("GPU", 0) >= 1)
    least, most = (config.count, config.count) if config.count else (config.min, config.max)
    if local:
        for key, name, each in (("cpus_each", "CPU", config.cpus_each), ("gpus_each", "GPU", gpus_each)):
            if each * least > have.get(name, 0):
                raise ConfigError(
                    f"actors.{key}: {least} actor(s) of {each:g} {name} each need {each * least:g}, "
                    f"this machine has {have.get(name, 0):g}. Lower actors.{key} or actors.count."
                )
    name, each = ("GPU", gpus_each) if gpus_each else ("CPU", config.cpus_each)
    return Resources(least, most, config.cpus_each, gpus_each, local, room=int(have.get(name, 0) // each))
