"""Whether a Ray cluster answers at `RAY_ADDRESS`, asked before `ray.init`: that waits two minutes for a dead one.

What goes wrong is the address's or the token's fault, and told as such. Since Ray 2.60 a cluster wants a token once a
token file was there when it was started, yet who comes by an address sends his only under `RAY_AUTH_MODE=token`.
"""

import os
import secrets
import socket
import threading
from pathlib import Path
from typing import Any

from cmasd.errors import ConfigError

ANSWER_SECONDS = 20.0
"""For the cluster's head."""
TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def named() -> str | None:
    """The address of a cluster, or null where Ray is to be started here."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def check_answers(address: str, seconds: float = ANSWER_SECONDS) -> None:
    """Raises `ConfigError` unless a cluster answers there; Ray itself looks for the one that `auto` stands for."""
    if address == "auto":
        return
    found: list[Exception | None] = []

    def ask() -> None:
        try:
            _ask_client(address, seconds) if "://" in address else _ask_head(address)
            found.append(None)
        except Exception as error:  # noqa: BLE001 - told in the other thread
            found.append(error)

    thread = threading.Thread(target=ask, name="address", daemon=True)  # Ray's waiting cannot be interrupted
    thread.start()
    thread.join(seconds)
    if not found:
        raise no_cluster(address, f"nothing answered within {seconds:g} s")
    if found[0] is not None:
        raise refusal(address, found[0])


def _ask_head(address: str) -> None:
    from ray import _raylet

    raylet: Any = _raylet
    raylet.GcsClient(address=address)


def _ask_client(address: str, seconds: float) -> None:
    host, _, port = address.partition("://")[2].partition("/")[0].rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), seconds).close()


def refusal(address: str, error: Exception) -> ConfigError:
    """Why no connection came about, and what to set."""
    if type(error).__name__ != "AuthenticationError":
        return no_cluster(address, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    where = "~/.ray/auth_token or RAY_AUTH_TOKEN"
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        return ConfigError(
            f"RAY_ADDRESS: the cluster at {address} refuses our token; expected the one of its start, in {where}. "
            "Copy it from its head (`ray get-auth-token` there)."
        )
    return ConfigError(
        f"RAY_ADDRESS: the cluster at {address} wants a token, got none; expected RAY_AUTH_MODE=token and the token in "
        f"{where}. Set the former (for `ray job submit` too), and copy the token from the head if that is elsewhere."
    )


def no_cluster(address: str, why: str) -> ConfigError:
    """Nobody is there, or no Ray."""
    return ConfigError(
        f"RAY_ADDRESS: no Ray cluster answers there ({why}), got {address}; expected host:port as `ray start --head` "
        "names it. Start the cluster, or unset RAY_ADDRESS to run on this machine alone."
    )


def keep_token_to_ourselves() -> None:
    """A token for a Ray of our own, where the user has none: Ray would write one into the home folder, and from then
    on every cluster that is started there would want it.
    """
    try:
        has_file = (Path.home() / ".ray" / "auth_token").exists()
    except (OSError, RuntimeError):  # no home, or one that may not be looked into
        has_file = False
    if not has_file and not any(name in os.environ for name in TOKEN_VARIABLES):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
