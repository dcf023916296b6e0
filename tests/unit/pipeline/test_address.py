"""A cluster's address: what is wrong with it is told within seconds, with what to set."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.exceptions import AuthenticationError

from cmasd.errors import ConfigError
from cmasd.pipeline.address import TOKEN_VARIABLES, check_answers, keep_token_to_ourselves, named, refusal


@pytest.fixture
def port() -> Iterator[int]:
    """Of someone who listens and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("value", "expected"), [(None, None), ("", None), ("local", None), ("auto", "auto"), (" h:1 ", "h:1")]
)
def test_where_ray_is(value: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if value is not None:
        monkeypatch.setenv("RAY_ADDRESS", value)
    assert named() == expected


def test_a_run_at_a_dead_address_ends_with_code_2_and_one_line(port: int, tmp_path: Path) -> None:
    """In a process of its own: Ray's own attempt to connect goes on for a minute."""
    (tmp_path / "in.jsonl").write_text('{"text": "one"}\n')
    program = (
        "import sys\nfrom cmasd.pipeline import address, cluster\nfrom jobs.main import main\n"
        "cluster.check_answers = lambda name: address.check_answers(name, 0.5)\nsys.exit(main(sys.argv[1:]))"
    )
    paths = [f"input.path={tmp_path}/in.jsonl", f"output.path={tmp_path}/run"]
    environment = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{port}"}
    command = [sys.executable, "-c", program, "run", *paths, "--quiet"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: RAY_ADDRESS: no Ray cluster answers there (nothing answered within 0.5 s), got "
        f"127.0.0.1:{port}; expected host:port as `ray start --head` names it. Start the cluster, or unset "
        "RAY_ADDRESS to run on this machine alone.\n"
    )


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("garbage", "Invalid gcs_address: garbage"),
        ("ray://127.0.0.1:1", "Connection refused"),
        ("ray://x", "ValueError"),
    ],
)
def test_what_is_no_address_is_told_at_once(address: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check_answers(address, 20.0)


def test_a_missing_token_and_a_wrong_one_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    error = AuthenticationError("RPC error: InvalidAuthToken")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert "wants a token, got none; expected RAY_AUTH_MODE=token and the token in" in str(refusal("h:1", error))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert "h:1 refuses our token; expected the one of its start" in str(refusal("h:1", error))


@pytest.mark.parametrize("has", ["nothing", "file", *TOKEN_VARIABLES])
def test_a_ray_of_our_own_leaves_no_token_behind(has: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token file in the home folder would make every later cluster there want it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in TOKEN_VARIABLES:
        monkeypatch.setenv(name, "")  # so that what is added is undone
        monkeypatch.delenv(name)
    if has == "file":
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("mine")
    elif has != "nothing":
        monkeypatch.setenv(has, "mine")
    before = dict(os.environ)
    keep_token_to_ourselves()
    added = {name: value for name, value in os.environ.items() if before.get(name) != value}
    assert [(name, len(value)) for name, value in added.items()] == (
        [("RAY_AUTH_TOKEN", 64)] if has == "nothing" else []
    )
