"""Who is told of a run's end, and that failing to tell stays a sentence without secrets."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from cmasd.config.running import NotifyConfig
from cmasd.pipeline.notify import Ending, tell

COMPLETE = Ending("runs/a", "complete", 0, None, {"rows": 1200, "errors": 3})
TOKEN = "T0ken-in-the-path"


class Server(HTTPServer):
    """Answers with the codes it is given, in turn; keeps what it got."""

    codes: list[int]
    got: list[dict[str, Any]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append({"path": self.path, "type": self.headers["Content-Type"], "body": json.loads(body)})
        self.send_response(self.server.codes.pop(0))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Not on stderr."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.codes, server.got = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def webhook(server: Server) -> NotifyConfig:
    return NotifyConfig(webhook=f"http://127.0.0.1:{server.server_port}/{TOKEN}")


def test_a_webhook_gets_state_and_summary(server: Server) -> None:
    server.codes = [204]
    assert tell(webhook(server), COMPLETE) == []
    (got,) = server.got
    assert (got["path"], got["type"]) == (f"/{TOKEN}", "application/json")
    assert got["body"] == {
        "text": "cmasd: runs/a complete, 1,200 rows, 3 failed",
        "run": "runs/a",
        "state": "complete",
        "exit_code": 0,
        "error": None,
        "summary": {"rows": 1200, "errors": 3},
    }


def test_a_server_error_is_tried_once_more_and_a_refusal_is_not(server: Server) -> None:
    server.codes = [503, 200]
    assert tell(webhook(server), COMPLETE) == []
    server.codes = [404, 200]
    assert tell(webhook(server), COMPLETE) == [
        "notify.webhook: 127.0.0.1 answered 404; the run itself is not affected."
    ]
    assert len(server.got) == 3


def test_what_cannot_be_reached_is_told_without_its_secrets() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for address in (f"http://user:{TOKEN}@127.0.0.1:{port}/{TOKEN}", f"http://127.0.0.1:{port}/{TOKEN} with spaces"):
        (said,) = tell(NotifyConfig(webhook=address, timeout_seconds=2.0), COMPLETE)
        assert "127.0.0.1" in said
        assert TOKEN not in said


def test_a_command_gets_the_same_on_its_stdin(tmp_path: Path) -> None:
    failed = Ending("runs/a", "failed", 3, "too many", None)
    assert tell(NotifyConfig(command=f"cat > {tmp_path}/end.json"), failed) == []
    told = json.loads((tmp_path / "end.json").read_text())
    assert (told["state"], told["exit_code"], told["error"], told["summary"]) == ("failed", 3, "too many", None)
    assert told["text"] == "cmasd: runs/a failed: too many"


def test_a_command_that_fails_or_hangs_is_told_without_its_text(tmp_path: Path) -> None:
    (said,) = tell(NotifyConfig(command=f"true {TOKEN}; exit 7"), COMPLETE)
    assert said == "notify.command: ended with 7; the run itself is not affected."
    (said,) = tell(NotifyConfig(command=f"exec sleep 60 # {TOKEN}", timeout_seconds=0.05), COMPLETE)
    assert said.startswith("notify.command: took longer than 0.3 seconds")
    assert TOKEN not in said


def test_letters_beyond_ascii_in_an_address_and_in_a_run(server: Server) -> None:
    server.codes = [200]
    config = NotifyConfig(webhook=f"http://127.0.0.1:{server.server_port}/größe?für=ä b")
    assert tell(config, Ending("läufe/\udcff", "failed", 1, "größe: 日本", None)) == []
    (got,) = server.got
    assert got["path"] == "/gr%C3%B6%C3%9Fe?f%C3%BCr=%C3%A4%20b"
    assert got["body"]["text"] == "cmasd: läufe/\udcff failed: größe: 日本"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (NotifyConfig(webhook="http://[::1"), "notify.webhook: the address could not be reached (ValueError)"),
        (NotifyConfig(command="true \x00"), "notify.command: failed (ValueError)"),
    ],
)
def test_what_no_one_can_call_is_a_sentence(config: NotifyConfig, said: str) -> None:
    assert tell(config, COMPLETE) == [f"{said}; the run itself is not affected."]
