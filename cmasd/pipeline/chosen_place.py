"""Whether a run decodes in the driver's own process or on a Ray, where `actors.local=auto` leaves it open.

Imports neither torch nor ray: `cmasd plan` asks, too.
"""

import os
import sys
from dataclasses import replace

from cmasd.config.tree import Config
from cmasd.io.runs import Run
from cmasd.pipeline.address import named

FEW_ROWS = 1_000
"""Soon decoded, and soon decoded again: a Ray would start for as long, to watch over them."""


def decided(config: Config, run: Run) -> Config:
    """With `actors.local` true or false; one process that decodes has all processors to itself."""
    asked = config.actors
    local = _belongs_here(config, run) if asked.local == "auto" else asked.local
    cpus_each = float(os.cpu_count() or 1) if local else asked.cpus_each
    return replace(config, actors=replace(asked, local=local, cpus_each=cpus_each))


def _belongs_here(config: Config, run: Run) -> bool:
    """Few rows, for one actor, no Ray that waits for them, and no start of this run that died: a Ray finds the row."""
    one = config.actors.count is None and config.actors.max == 1 and config.actors.gpus_each is None
    if not one or run.plan.rows > FEW_ROWS or named() is not None or _is_connected():
        return False
    return all(attempt["state"] != "running" for attempt in run.folder.attempts())


def _is_connected() -> bool:
    """Whether the caller has a Ray; it is not imported for the question."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
