"""An S3 server on loopback that fails on demand: moto behind a layer that answers errors or cuts connections."""

import logging
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

BUCKET = "corpus"
MUTE_SECONDS = 10.0
SPARED = "cmasd-tests-spared"
SECRET = "wJalrFAKEFAKE/K7MDENG+bPxRfiCYEXAMPLESECRET"
TOKEN = "FwoGZXIvYXdzFAKESESSIONTOKENEXAMPLE"

_CODES = {
    "internal": ("500 Internal Server Error", "InternalError"),
    "slow_down": ("503 Slow Down", "SlowDown"),
    "unavailable": ("503 Service Unavailable", "ServiceUnavailable"),
    "expired": ("400 Bad Request", "ExpiredToken"),
    "denied": ("403 Forbidden", "AccessDenied"),
}


@dataclass
class Fault:
    """What the next `times` requests that match get."""

    kind: str
    """A key of `_CODES`; `drop`: the connection is closed without an answer; `lost`: so, after the request was carried
    out; `cut`: half of the body of an answer to GET; `delay`: a late answer; `mute`: none for a while."""
    times: int = 1
    method: str = ""
    """Empty: any."""
    mark: str = ""
    """Part of path and query."""

    def matches(self, environ: dict[str, Any]) -> bool:
        address = f"{environ['PATH_INFO']}?{environ.get('QUERY_STRING', '')}"
        return self.times > 0 and self.method in ("", environ["REQUEST_METHOD"]) and self.mark in address


@dataclass
class Weather:
    """Faults at random, for as long as it lasts; requests of clients that call themselves `SPARED` get none."""

    chances: dict[str, float]
    """By kind, per request; their sum is at most 1."""
    random: random.Random
    most_delay_seconds: float = 3.0

    def strikes(self, environ: dict[str, Any]) -> Fault | None:
        if SPARED in environ.get("HTTP_USER_AGENT", ""):
            return None
        kinds = [*self.chances, ""]
        kind = self.random.choices(kinds, [*self.chances.values(), 1 - sum(self.chances.values())])[0]
        if not kind or (kind == "cut" and environ["REQUEST_METHOD"] != "GET"):
            return None
        return Fault(kind)


@dataclass
class FaultyS3:
    """The layer."""

    application: Any
    faults: list[Fault] = field(default_factory=list)
    weather: Weather | None = None
    injected: Counter[str] = field(default_factory=Counter)
    requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self.lock:
            query = environ.get("QUERY_STRING", "")
            self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{query}")
            fault = next((fault for fault in self.faults if fault.matches(environ)), None)
            if fault is None and self.weather is not None:
                fault = self.weather.strikes(environ)
            if fault is not None:
                fault.times -= 1
                self.injected[fault.kind] += 1
        if fault is not None and fault.kind == "delay":
            time.sleep(self.weather.random.uniform(0.1, self.weather.most_delay_seconds) if self.weather else 1.0)
        if fault is None or fault.kind == "delay":
            return self.application(environ, start)  # type: ignore[no-any-return]
        if fault.kind == "lost":
            b"".join(self.application(environ, lambda *_: None))
            return drop(environ["werkzeug.socket"])
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if fault.kind == "mute":
            time.sleep(MUTE_SECONDS)
        if fault.kind in ("drop", "mute"):
            return drop(environ["werkzeug.socket"])
        if fault.kind == "cut":
            answer = b"".join(self.application(environ, start))
            return drop(environ["werkzeug.socket"], answer[: len(answer) // 2])
        status, code = _CODES[fault.kind]
        body = f"<Error><Code>{code}</Code><Message>injected {code}</Message></Error>".encode()
        start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body if environ["REQUEST_METHOD"] != "HEAD" else b""]


def drop(connection: socket.socket, part: bytes = b"") -> Iterator[bytes]:
    """Send what there is and close the connection; werkzeug would keep it for the next request."""
    if part:
        yield part
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


def spared_client() -> Any:
    """For those who watch: no weather strikes it."""
    import boto3
    from botocore.config import Config

    return boto3.client("s3", config=Config(user_agent_extra=SPARED))


@contextmanager
def faulty_s3(attempts: int | None = 3) -> Iterator[FaultyS3]:
    """A server with a bucket; `AWS_*` point to it. A request is tried so often; null: as often as the product does."""
    import boto3
    import s3fs
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    layer = FaultyS3(DomainDispatcherApplication(create_backend_app))
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, layer, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    values = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "AKIAFAKEKEY",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": TOKEN,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    values |= {"AWS_MAX_ATTEMPTS": str(attempts), "AWS_RETRY_MODE": "standard"} if attempts else {}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        yield layer
        for upload in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
            client.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
        for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
            client.delete_object(Bucket=BUCKET, Key=entry["Key"])
    finally:
        server.shutdown()
        thread.join()
        s3fs.S3FileSystem.clear_instance_cache()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
