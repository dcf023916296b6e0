"""A program that works on a run folder as a driver with its writer does, without Ray and models, in a child process
that it kills (-9) hundreds of times: before, within and after any step of planning, leasing, writing and merging.

`python -m tests.integration.killed_writers FOLDER KILLS SEED` prints one JSON line.
"""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from cmasd.config import Config, from_dict
from cmasd.core import RowError
from cmasd.errors import RunInUseError
from cmasd.io.compaction import compact
from cmasd.io.lease import Lease, newest_lease, refuse_if_live
from cmasd.io.plan import source_of
from cmasd.io.run_folder import RunFolder
from cmasd.io.runs import Run, look_at
from cmasd.io.shards import read_shards
from cmasd.pipeline.run import audit
from cmasd.telemetry.recorder import Row, record

ROWS, ROWS_PER_SHARD = 100, 4

MOST_STEPS = {"run": 200, "compact": 60}
"""Nearly as many as there are, so that most children are killed."""


def config(folder: Path) -> Config:
    output = {"path": str(folder / "run"), "rows_per_shard": ROWS_PER_SHARD}
    return from_dict({"input": {"path": str(folder / "in.jsonl")}, "output": output})


def drive(asked: Config) -> None:
    """What `cmasd run` does, with an error for each row."""
    folder = RunFolder(asked.output.path)
    seen = newest_lease(folder.storage)
    refuse_if_live(folder.address, seen)
    state = look_at(asked)
    with Lease(folder.storage, folder.address, "run", after=seen) as lease:
        folder.clean(state.plan)
        if state.is_new:
            folder.start(asked, state.plan, {})
        write(asked, state, lease)
        audit(state)
        folder.write_json({"rows": state.plan.rows}, "summary.json")


def write(asked: Config, state: Run, lease: Lease) -> None:
    todo = {shard.index for shard in state.todo}
    if not todo:
        return
    file = state.plan.part(0)
    for shard, rows in read_shards(file, source_of(asked, file.planned.file), todo):
        failed = [Row(one, RowError("read", text), None) for one, text in zip(*ids_and_texts(rows), strict=True)]
        state.folder.write_shard(shard, record(failed, "none"))
        lease.check()


def ids_and_texts(rows: pa.Table) -> tuple[list[str], list[str]]:
    return [str(one) for one in rows["id"].to_pylist()], [str(one) for one in rows["text"].to_pylist()]


def merge(asked: Config) -> None:
    """What `cmasd compact` does, in several steps."""
    compact(asked.output.path, 60_000)


def killed_after(act: Callable[[Config], None], asked: Config, steps: int, extra_seconds: float) -> int:
    """0 when it ended before, by itself; -9 when it was killed, so many steps of its file system calls after start."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        os._exit(_work(act, asked, sender))
    os.close(sender)
    for _ in range(steps):
        if not os.read(receiver, 1):
            break
    else:
        time.sleep(extra_seconds)
        os.kill(child, signal.SIGKILL)
    os.close(receiver)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _work(act: Callable[[Config], None], asked: Config, sender: int) -> int:
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for holder, name in ((os, "fsync"), (os, "link"), (Path, "replace"), (Path, "unlink"), (Path, "mkdir")):
        _announce(holder, name, sender)
    try:
        act(asked)
    except RunInUseError:
        return 10
    except BaseException as error:  # noqa: BLE001 - the parent sees the code
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 11
    return 0


def _announce(holder: Any, name: str, sender: int) -> None:
    """Send a byte before and after each call, so that a kill can fall on either side."""
    original = getattr(holder, name)

    def act(*args: Any, **options: Any) -> Any:
        os.write(sender, b".")
        result = original(*args, **options)
        os.write(sender, b".")
        return result

    setattr(holder, name, act)


def main(folder: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    lines = (json.dumps({"text": f"row {i}"}) + "\n" for i in range(ROWS))
    (folder / "in.jsonl").write_text("".join(lines))
    asked = config(folder)
    codes: Counter[str] = Counter()
    while codes["run -9"] + codes["compact -9"] < kills:
        verb, act = chance.choice([("run", drive), ("run", drive), ("compact", merge)])
        if verb == "compact" and not (folder / "run" / "manifest.json").exists():
            continue
        code = killed_after(act, asked, chance.randint(1, MOST_STEPS[verb]), chance.uniform(0.0, 0.002))
        codes[f"{verb} {code}"] += 1
        if code == 0 and verb == "run":
            for path in (folder / "run" / "outputs").iterdir():
                if chance.random() < 0.7:
                    path.unlink()  # the run goes on with less
    for verb, act in (("run", drive), ("compact", merge), ("run", drive)):
        codes[f"last {verb} {killed_after(act, asked, 10**9, 0.0)}"] += 1
    sys.stdout.write(json.dumps(codes) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
