"""What happens when a run has ended, whichever way: `notify.*` and a log line. The ending itself goes on as it was."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from cmasd.config import Config

State = Literal["complete", "no rows", "failed", "interrupted"]
_log = logging.getLogger("cmasd.jobs")


@contextmanager
def told(config: "Config") -> Iterator[dict[str, Any]]:
    """Yields a place for the summary; tells `notify.*` after the block, also when it raises."""
    summary: dict[str, Any] = {}
    try:
        yield summary
    except BaseException as error:
        _tell(config, error, None)
        raise
    _tell(config, None, summary)


def _tell(config: "Config", error: BaseException | None, summary: dict[str, Any] | None) -> None:
    from cmasd.pipeline.notify import Ending, tell

    state, code = how(error)
    state = "no rows" if summary and not summary["rows"] else state
    said = " ".join(str(error).split()) if error is not None and state == "failed" else None
    problems = tell(config.notify, Ending(config.output.path, state, code, said, summary))
    if config.logging.format == "json":
        counts = {key: summary[key] for key in ("rows", "errors", "output_tokens", "seconds")} if summary else {}
        level = logging.INFO if error is None else logging.ERROR
        _log.log(level, "run %s", state, extra={"fields": {"exit_code": code, "error": said, **counts}})
        for problem in problems:
            _log.warning(problem)
        return
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)


def how(error: BaseException | None) -> tuple[State, int]:
    """State, if there were rows, and exit code, as `jobs.main` will have it."""
    from jobs.main import INTERRUPTED, TERMINATED, Terminated

    if error is None:
        return "complete", 0
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, Terminated):
        return "interrupted", TERMINATED
    return "failed", int(getattr(error, "exit_code", 1))
