"""Telling others that a run has ended: a webhook, a command.

Failing to tell changes nothing about the run; it comes back as a sentence. Addresses and commands may hold tokens, so
no sentence names more than the host, and no exception's text is passed on.
"""

import json
import subprocess
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from http.client import HTTPException
from typing import Any, Literal
from urllib.parse import urlsplit

from cmasd.config.tree import NotifyConfig

WEBHOOK_TRIES = 2
COMMAND_TIMEOUTS = 6
"""Seconds that a command may take, in `notify.timeout_seconds`."""


@dataclass(frozen=True)
class Ending:
    """How a start of a run ended."""

    run: str
    """Address of the run folder."""
    state: Literal["complete", "no rows", "failed", "interrupted"]
    exit_code: int
    error: str | None
    summary: dict[str, Any] | None
    """Of a run that is complete, or has no rows."""

    def to_json(self) -> bytes:
        """What is sent; `text` is what chat services show."""
        rows = f", {self.summary['rows']:,} rows, {self.summary['errors']:,} failed" if self.summary else ""
        text = f"cmasd: {self.run} {self.state}{rows}" + (f": {self.error}" if self.error else "")
        return json.dumps({"text": text, **asdict(self)}, ensure_ascii=False).encode()


def tell(config: NotifyConfig, ending: Ending) -> list[str]:
    """Tell everyone; returns what went wrong, one sentence each."""
    told = [
        _post(config.webhook, ending.to_json(), config.timeout_seconds) if config.webhook else None,
        _call(config.command, ending.to_json(), COMMAND_TIMEOUTS * config.timeout_seconds) if config.command else None,
    ]
    return [problem for problem in told if problem]


def _post(address: str, body: bytes, timeout_seconds: float) -> str | None:
    for _ in range(WEBHOOK_TRIES):
        try:
            request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=timeout_seconds):
                return None
        except urllib.error.HTTPError as error:
            reason = f"answered {error.code}"
            if error.code < 500:
                break
        except (OSError, HTTPException, ValueError) as error:
            reason = f"could not be reached ({type(error).__name__})"
    return f"notify.webhook: {urlsplit(address).hostname} {reason}; the run itself is not affected."


def _call(command: str, body: bytes, timeout_seconds: float) -> str | None:
    try:
        done = subprocess.run(command, shell=True, input=body, stdout=subprocess.DEVNULL, timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        return f"notify.command: took longer than {timeout_seconds:g} seconds; the run itself is not affected."
    except OSError as error:
        return f"notify.command: could not be started ({type(error).__name__}); the run itself is not affected."
    if done.returncode:
        return f"notify.command: ended with {done.returncode}; the run itself is not affected."
    return None
