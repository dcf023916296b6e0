"""`cmasd run` on input of many bad kinds, with a row that kills its worker: each row comes out once."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest

from tests.integration.conftest import SENTENCES

ROOT = Path(__file__).parents[2]
POISON = "Omelette"
TOKENIZER = f"""
import os
from transformers import PreTrainedTokenizerFast

class FragileTokenizer(PreTrainedTokenizerFast):
    def _encode_plus(self, text, *args, **options):
        if any({POISON!r} in one for one in ([text] if isinstance(text, str) else text)):
            os._exit(9)
        return super()._encode_plus(text, *args, **options)
"""


@pytest.fixture
def fragile_pair(pair: Path, tmp_path: Path) -> Path:
    """The tiny pair with a tokenizer of its own, which kills its process at a word."""
    shutil.copytree(pair, tmp_path / "pair")
    for name in ("verifier", "drafter"):
        folder = tmp_path / "pair" / name
        (folder / "tokenization_fragile.py").write_text(TOKENIZER)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings |= {"tokenizer_class": "FragileTokenizer"}
        settings |= {"auto_map": {"AutoTokenizer": [None, "tokenization_fragile.FragileTokenizer"]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path / "pair"


def line(**values: Any) -> bytes:
    return json.dumps(values).encode()


ROWS: list[tuple[bytes, str | None]] = [
    (line(id="empty", text=""), None),
    (line(id="rtl", text="\u202e\u05e9\u05dc\u05d5\u05dd\u202c"), None),
    (line(id="emoji", text="\U0001f9d1\u200d\U0001f680" * 5), None),
    (line(id="controls", text="".join(map(chr, range(32)))), None),
    (line(id="null", text=None), "read: text is null"),
    (line(id="number", text=7), "read: text is int"),
    (b'{"id": "nan", "text": NaN}', "read: text is float"),
    (line(id="missing", words="a"), "read: no column 'text'"),
    (line(id="surrogate", text="\ud800"), "read: text is not valid Unicode"),
    (line(id="long", text="the keys " * 300), "encode: the source has"),
    (line(id="ten megabytes", text="x" * 10_000_000), "read: text has 10000000 bytes"),
    (line(id=f"{POISON}", text=f"{POISON} with cheese"), "crash: the worker died 1 times"),
    (line(id="twice", text="Once."), None),
    (line(id="twice", text="Once."), None),
    (line(id="../../../escape", text="Up and out."), None),
    (line(id="/etc/cmasd\0x", text="Up and out."), None),
]
NAMELESS: list[tuple[bytes, str | None]] = [
    (b"{broken", "read: is not JSON"),
    (b'{"text": "\xff"}', "read: is not UTF-8"),
    (b"[1, 2]", "read: is JSON but not an object"),
    (b"\0\0\0", "read: is not JSON"),
]


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_bad_rows_of_all_kinds_and_one_that_kills(tmp_path: Path, fragile_pair: Path) -> None:
    good = [(line(id=f"good {n}", text=SENTENCES[n % 6]), None) for n in range(20)]
    rows = [*good[:10], *ROWS, *NAMELESS, *good[10:]]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "in.jsonl").write_bytes(b"\n".join(content for content, _ in rows))
    expected = []
    for number, (content, error) in enumerate(rows):
        named = content.startswith(b'{"id"')
        said = error.replace("read: ", f"read: line {number + 1}: ") if error else None
        expected.append((json.loads(content)["id"] if named else f"in.jsonl:{number}", said))
    command = [sys.executable, "-m", "jobs", "run", f"input.path={tmp_path}/in", f"output.path={tmp_path}/run"]
    command += ["input.id_column=id", "output.rows_per_shard=4", "engine.slots=4", "engine.max_new_tokens=6"]
    command += [f"models.{name}={fragile_pair}/{name}" for name in ("verifier", "drafter")]
    command += ["models.trust_remote_code=true", "limits.max_actor_restarts=1", "limits.max_failed_fraction=0.5"]
    command += ["engine.max_source_tokens=100"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    found = pads.dataset(tmp_path / "run" / "outputs").to_table().to_pylist()
    assert sorted(str(row["id"]) for row in found) == sorted(str(one) for one, _ in expected), "one id comes twice"
    errors = dict(expected)
    for row in found:
        if errors[row["id"]] is None:
            assert row["error"] is None, row
            assert row["output"] is not None
        else:
            assert row["error"].startswith(errors[row["id"]]), row
            assert row["output"] is None
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["rows"], summary["errors"]) == (len(rows), sum(error is not None for _, error in rows))
    assert f"{POISON}: crashed its worker each time" in done.stdout
    files = {path.relative_to(tmp_path / "run").parts[0] for path in (tmp_path / "run").rglob("*")}
    assert files <= {"outputs", "manifest.json", "summary.json", "attempts", "leases"}, "no id became a path"
    assert {path.name for path in tmp_path.iterdir()} == {"in", "run", "pair"}
