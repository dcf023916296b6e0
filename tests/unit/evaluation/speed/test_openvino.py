"""OpenVINO as a peer: what goes to its process and comes back, and what a user reads where it cannot take part.

The process is real; in place of `openvino_genai` it finds a module that answers by a rule.
"""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cmasd.config import Config
from cmasd.core import Request
from cmasd.errors import ModelError
from cmasd.evaluation.speed.peers import OpenVino, load_openvino
from cmasd.evaluation.speed.peers.ov import exported_dtype
from tests.unit.engine.pairs import shared_pair, tiny_config

MODULES = {
    "openvino.py": """
class Tensor:
    def __init__(self, data):
        self.data = data
""",
    "openvino_genai.py": """
import json

__version__ = "0.0"
print("a library that prints")

class SchedulerConfig:
    max_num_seqs = 0

class GenerationConfig:
    num_assistant_tokens = 0

def draft_model(folder, device, **options):
    return folder

class GenerationStatus:
    RUNNING, FINISHED = 0, 1

class Output:
    def __init__(self, ids):
        self.generated_ids = ids

class Handle:
    def __init__(self, ids, steps):
        self.ids, self.left = ids, steps

    def get_status(self):
        return GenerationStatus.RUNNING if self.left else GenerationStatus.FINISHED

    def read_all(self):
        return [Output(self.ids)]

class ContinuousBatchingPipeline:
    def __init__(self, folder, scheduler, device, options):
        self.told = [options["INFERENCE_NUM_THREADS"], len(options.get("draft_model", ""))]
        self.live, self.ids = [], set()

    def add_request(self, id, row, config):
        if row.data.max() > 90:
            raise ValueError("a line\\nand another")
        assert id not in self.ids, "an id comes twice"
        self.ids.add(id)
        about = [int(row.data.sum()), len(row.data[0]), config.max_new_tokens, config.num_assistant_tokens]
        self.live.append(Handle([*about, *sorted(config.stop_token_ids), *self.told], len(row.data[0])))
        return self.live[-1]

    def step(self):
        for handle in self.live:
            handle.ids.append(len(self.live))
            handle.left -= 1
        self.live = [handle for handle in self.live if handle.left]
""",
}
"""A row is answered with what the process was told of it, and with how many rows were there at each of its steps."""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """With exports of both models, and a module in place of OpenVINO."""
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
    for name in ("verifier", "drafter"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "openvino_model.xml").touch()
    (tmp_path / "verifier" / "openvino_model.xml").write_text('<mode value="int8_asym" />')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    folders = {"openvino": str(tmp_path / "verifier"), "openvino_drafter": str(tmp_path / "drafter")}
    return tiny_config(peers={**folders, "openvino_python": sys.executable})


def test_rows_go_and_outputs_come_back_by_key(config: Config, tmp_path: Path) -> None:
    pair = replace(shared_pair("llama"), max_length=12)
    requests = [Request(7, [3, 4, 5], 6), Request(2, [9] * 8, 6), Request(4, [1, 2], 3)]
    ends = sorted(pair.constraints.eos_token_ids)
    beside = {1: {7: [1] * 3, 2: [1] * 8, 4: [1] * 2}, 2: {7: [2] * 3, 2: [2] * 5 + [1] * 3, 4: [2] * 2}}
    for drafts, drafter in ((False, 0), (True, len(str(tmp_path / "drafter")))):
        process = load_openvino(pair, config, 2, drafts=drafts)
        assert (process.version, process.dtype) == ("0.0", "int8")
        drafted = 3 if drafts else 0
        told = {7: [12, 3, 6], 2: [72, 8, 4], 4: [3, 2, 3]}
        for slots, live in beside.items():
            expected = {key: [*about, drafted, *ends, 2, drafter, *live[key]] for key, about in told.items()}
            assert OpenVino(pair, process, slots, drafted=3).decode(requests) == expected
    assert OpenVino(pair, process, 4, drafted=3).decode([]) == {}


def test_an_error_of_openvino_is_shown_and_the_process_goes_on(config: Config) -> None:
    pair = shared_pair("llama")
    peer = OpenVino(pair, load_openvino(pair, config, 1), 1, drafted=3)
    with pytest.raises(ModelError, match="openvino: a line and another"):
        peer.decode([Request(0, [99], 4)])
    assert len(peer.decode([Request(0, [9], 4)])) == 1
    peer.process._process.kill()
    with pytest.raises(ModelError, match="openvino: its process has ended, with -9"):
        peer.decode([Request(0, [9], 4)])


def test_what_is_lacking_is_named(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = shared_pair("llama")

    def asked(**peers: str | None) -> Config:
        return replace(config, peers=replace(config.peers, **peers))

    with pytest.raises(ModelError, match=r"peers.openvino: names no folder. optimum-cli export openvino"):
        load_openvino(pair, asked(openvino=None), 1)
    with pytest.raises(ModelError, match=r"peers.openvino_drafter: holds no openvino_model.xml, got elsewhere"):
        load_openvino(pair, asked(openvino_drafter="elsewhere"), 1, drafts=True)
    with pytest.raises(ModelError, match=r"peers.openvino_python: cannot be run, got nowhere/python \(No such file"):
        load_openvino(pair, asked(openvino_python="nowhere/python"), 1)
    with pytest.raises(ModelError, match="decodes decoder-only models alone"):
        load_openvino(shared_pair("marian"), config, 1)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "drafter"))
    with pytest.raises(ModelError, match=r"lacks OpenVINO \(No module named 'openvino_genai'\). pip install"):
        load_openvino(pair, config, 1)


@pytest.mark.parametrize(
    ("said", "dtype"),
    [
        ('<data element_type="f32" /><mode value="int4_sym" />', "int4"),
        ('<data element_type="bf16" />', "bfloat16"),
        ('<data element_type="f16" />', "float16"),
        ('<data element_type="f32" />', "float32"),
    ],
)
def test_the_precision_of_an_export_is_read_from_it(said: str, dtype: str, tmp_path: Path) -> None:
    (tmp_path / "openvino_model.xml").write_text(said)
    assert exported_dtype(str(tmp_path)) == dtype
