"""Bad input of every kind in every format through whole runs: each row comes out once, or the run ends with code 2."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.dataset as pads
import pytest

from cmasd.config import from_dict
from cmasd.pipeline.cluster import start_local
from cmasd.pipeline.run import run
from jobs.main import main
from tests.unit.io.test_bad_input import ALL, Bad, Outcome, Refused

FOLDERS = ("dataset", "folder")
"""Endings of cases that are whole folders; all others are files."""
FORMATS = ("jsonl", "csv", "txt", "parquet")
READ = [case for case in ALL if not isinstance(case[3], Refused)]
REFUSED = [case for case in ALL if isinstance(case[3], Refused)]


@pytest.fixture(scope="module", autouse=True)
def connection() -> Iterator[None]:
    import ray

    start_local(logging.CRITICAL, num_cpus=2)
    yield
    ray.shutdown()


def write(path: Path, content: bytes | Callable[[Path], object]) -> None:
    path.write_bytes(content) if isinstance(content, bytes) else content(path)


def check(folder: Path, pair: Path, expected: dict[str, str | Bad]) -> None:
    """A run over `in` gives each row what is expected, by id."""
    asked = from_dict(
        {
            "input": {"path": str(folder / "in")},
            "output": {"path": str(folder / "run"), "rows_per_shard": 32},
            "models": {name: str(pair / name) for name in ("verifier", "drafter")},
            "engine": {"slots": 16, "max_new_tokens": 2},
            "limits": {"max_failed_fraction": 1.0},
        }
    )
    summary = run(asked)
    found = pads.dataset(folder / "run" / "outputs").to_table(columns=["id", "error", "output"]).to_pylist()
    assert sorted(row["id"] for row in found) == sorted(expected)
    for row in found:
        outcome = expected[row["id"]]
        if isinstance(outcome, Bad):
            assert row["error"].startswith("read: ")
            assert outcome.said in row["error"]
            assert row["output"] is None
        else:
            assert row["error"] is None, row
            assert row["output"] is not None
    assert (summary["rows"], summary["errors"]) == (len(expected), sum(isinstance(o, Bad) for o in expected.values()))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("format", FORMATS)
def test_all_files_of_a_format_in_one_run(tmp_path: Path, pair: Path, format: str) -> None:
    """Their columns have different types, and some have no rows."""
    (tmp_path / "in").mkdir()
    expected: dict[str, str | Bad] = {}
    for number, (ending, _, content, outcome) in enumerate(READ):
        if ending.split(".")[0] == format:
            name = f"{number}.{ending}"
            write(tmp_path / "in" / name, content)
            assert isinstance(outcome, list)
            expected |= {f"{name}:{row}": one for row, one in enumerate(outcome)}
    assert len(expected) > 15
    check(tmp_path, pair, expected)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("content", "outcome"),
    [case[2:] for case in READ if case[0] in FOLDERS],
    ids=[case[1] for case in READ if case[0] in FOLDERS],
)
def test_folders_of_files(
    tmp_path: Path, pair: Path, content: Callable[[Path], object], outcome: list[str | Bad]
) -> None:
    write(tmp_path / "in", content)
    names = sorted(path.name for path in (tmp_path / "in").iterdir() if path.stat().st_size and path.suffix != ".json")
    check(tmp_path, pair, {f"{names[0]}:{row}": one for row, one in enumerate(outcome)})


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("ending", "content", "outcome"),
    [(case[0], *case[2:]) for case in REFUSED],
    ids=[f"{case[0]}: {case[1]}" for case in REFUSED],
)
def test_what_cannot_be_read_ends_a_run_with_code_2(
    tmp_path: Path,
    pair: Path,
    ending: str,
    content: bytes | Callable[[Path], object],
    outcome: Outcome,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / ("in" if ending in FOLDERS else f"in.{ending}")
    write(path, content)
    words = [f"input.path={path}", f"output.path={tmp_path}/run", "engine.slots=4"]
    assert main(["run", "--quiet", *words, *(f"models.{name}={pair}/{name}" for name in ("verifier", "drafter"))]) == 2
    assert isinstance(outcome, Refused)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ")
    assert outcome.said in said
