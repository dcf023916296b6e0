"""OpenVINO GenAI on the same requests, for decoder-only models: token ids in, token ids out, greedy.

Its models are folders that `optimum-cli export openvino` makes of the same checkpoints, at a precision of their own
(`peers.openvino`, `peers.openvino_drafter`): nothing is converted here. It decodes by continuous batching, and drafts
with a model of its own where it is given one, in a process of its own and by an interpreter of its own
(`peers.openvino_python`), since its tools want other versions of what this package needs. Of the checkpoint's rules it
is told where a row ends, and no other: the share of rows that equal plain decoding tells what that makes of them.
"""

import json
import re
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

from cmasd.config.tree import Config
from cmasd.core import Request
from cmasd.engine import Pair
from cmasd.errors import ModelError

SCRIPT = Path(__file__).with_name("ov_process.py")
MODEL_FILE = "openvino_model.xml"
COMPRESSED = re.compile(r'<mode value="(int\d+)\w*"')
HALVES = {"bfloat16": 'element_type="bf16"', "float16": 'element_type="f16"'}
EXPORT = "optimum-cli export openvino --model MODEL --task text-generation-with-past --weight-format int8 FOLDER"


class OpenVinoProcess:
    """The models in a process that ends with this object; it is stopped while nobody asks."""

    def __init__(self, python: str, model: str, drafter: str | None, threads: int) -> None:
        """Raises `ModelError` where the interpreter or OpenVINO is not there."""
        self._python, self.dtype = python, exported_dtype(model)
        try:
            self._process = subprocess.Popen(
                [python, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise ModelError(f"peers.openvino_python: cannot be run, got {python} ({error.strerror}).") from error
        self._ending = weakref.finalize(self, _end, self._process)
        self.version = str(self.ask({"model": model, "drafter": drafter, "threads": threads})["ready"])

    def ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        """See `ov_process.py`."""
        assert self._process.stdin is not None, "it is a pipe"
        assert self._process.stdout is not None, "it is a pipe"
        try:
            self._process.send_signal(signal.SIGCONT)
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline() or "{}")
            self._process.send_signal(signal.SIGSTOP)
        except BrokenPipeError:
            answer = {}
        if not answer:
            raise ModelError(f"openvino: its process has ended, with {self._process.wait()}.")
        if "No module named" in (error := str(answer.get("error", ""))):
            raise ModelError(
                f"peers.openvino_python: {self._python} lacks OpenVINO ({error}). pip install openvino-genai adds it, "
                f"in an environment of its own if need be."
            )
        if error:
            raise ModelError(f"openvino: {error}")
        return answer


class OpenVino:
    """Rows come and go in one batch of `slots`, which is loaded at the first call."""

    def __init__(self, pair: Pair, process: OpenVinoProcess, slots: int, drafted: int) -> None:
        """`drafted`: tokens of a draft, where there is a drafter."""
        self.pair, self.process = pair, process
        self._asked = {"slots": slots, "drafted": drafted, "eos": list(pair.constraints.eos_token_ids)}

    def decode(self, requests: list[Request]) -> dict[int, list[int]]:
        """Token ids by request key."""
        if not requests:
            return {}
        limits = [min(request.max_new_tokens, self.pair.room(len(request.source))) for request in requests]
        rows = [list(request.source) for request in requests]
        outputs = self.process.ask({**self._asked, "rows": rows, "limits": limits})["outputs"]
        return {request.key: output for request, output in zip(requests, outputs, strict=True)}


def load_openvino(pair: Pair, config: Config, threads: int, *, drafts: bool = False) -> OpenVinoProcess:
    """The exported verifier, `drafts`: with the exported drafter beside it; raises `ModelError`."""
    if pair.is_encoder_decoder or pair.sound is not None:
        raise ModelError("openvino: decodes decoder-only models alone here.")
    peers = config.peers
    model = _folder("peers.openvino", peers.openvino)
    drafter = _folder("peers.openvino_drafter", peers.openvino_drafter) if drafts else None
    return OpenVinoProcess(peers.openvino_python or sys.executable, model, drafter, threads)


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()


def exported_dtype(folder: str) -> str:
    """Of the weights in a folder, by what its model says of itself; `float32` alone rounds nothing."""
    said = (Path(folder) / MODEL_FILE).read_text()
    if found := COMPRESSED.search(said):
        return found[1]
    return next((name for name, mark in HALVES.items() if mark in said), "float32")


def _folder(key: str, folder: str | None) -> str:
    if folder is None:
        raise ModelError(f"{key}: names no folder. {EXPORT} makes one.")
    if not (Path(folder) / MODEL_FILE).is_file():
        raise ModelError(f"{key}: holds no {MODEL_FILE}, got {folder}. {EXPORT} makes such a folder.")
    return folder
