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
from urllib.parse import urlsplit, urlunsplit

from cmasd.config.running import NotifyConfig
from cmasd.pipeline.escaping import as_ascii

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
        return json.dumps({"text": text, **asdict(self)}, ensure_ascii=False).encode(errors="backslashreplace")


def tell(config: NotifyConfig, ending: Ending) -> list[str]:
    """Tell everyone; returns what went wrong, one sentence each."""
    ways = (
        ("webhook", _post, config.webhook, config.timeout_seconds),
        ("command", _call, config.command, COMMAND_TIMEOUTS * config.timeout_seconds),
    )
    told = []
    for name, way, target, seconds in ways:
        try:
            told.append(way(target, ending.to_json(), seconds) if target else None)
        except Exception as error:  # noqa: BLE001 - of whatever kind: the run has ended as it has
            told.append(f"notify.{name}: failed ({type(error).__name__}); the run itself is not affected.")
    return [problem for problem in told if problem]


def _post(address: str, body: bytes, timeout_seconds: float) -> str | None:
    for _ in range(WEBHOOK_TRIES):
        try:
            request = urllib.request.Request(_uri(address), body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=timeout_seconds):
                return None
        except urllib.error.HTTPError as error:
            reason = f"answered {error.code}"
            if error.code < 500:
                break
        except (OSError, HTTPException, ValueError) as error:
            reason = f"could not be reached ({type(error).__name__})"
    return f"notify.webhook: {_host(address)} {reason}; the run itself is not affected."


def _uri(address: str) -> str:
    """Letters beyond ASCII may stand in an address, not in the request's first line; the host's are urllib's to do."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(path=as_ascii(parts.path), query=as_ascii(parts.query)))


def _host(address: str) -> str:
    try:
        return urlsplit(address).hostname or "the address"
    except ValueError:  # no address at all
        return "the address"


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
