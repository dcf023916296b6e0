"""A model hub on loopback that serves folders and counts what is fetched: enough of its protocol to load a model."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 40


@contextmanager
def hub(models: Mapping[str, Path]) -> Iterator[tuple[str, Counter[str]]]:
    """Yields its address, and how often each `<model>/<file>` was fetched."""
    fetched: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
            name, file = "/".join(parts[:2]), "/".join(parts[4:])
            path = models[name] / file if name in models and parts[2:3] == ["resolve"] else None
            if parts[:2] == ["api", "models"]:
                listed = sorted(one.name for one in models["/".join(parts[2:4])].iterdir())
                files = [{"type": "file", "path": one, "size": 1, "oid": "0"} for one in listed]
                about = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": one} for one in listed]}
                self._send(200, json.dumps(files if "tree" in parts else about).encode(), with_body)
            elif path is None or not path.is_file():
                self._send(404, b"", with_body, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            else:
                fetched[f"{name}/{file}"] += with_body
                data = path.read_bytes()
                tag = hashlib.sha256(data).hexdigest()
                self._send(200, data, with_body, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})

        def _send(self, code: int, data: bytes, with_body: bool, more: Mapping[str, str] | None = None) -> None:
            self.send_response(code)
            for key, value in {"Content-Length": str(len(data)), **(more or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
