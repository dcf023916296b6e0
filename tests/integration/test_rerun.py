"""The same rows decoded again with the run before as drafts, on a real Ray with a real, tiny pair."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest

from cmasd.config import Config, from_dict
from cmasd.errors import ConfigError
from cmasd.io.compaction import compact
from cmasd.pipeline.cluster import start_local
from cmasd.pipeline.run import run
from cmasd.signals import FROM_PREVIOUS
from jobs.main import main
from tests.integration.conftest import SENTENCES

ROWS = 24
NEW_TOKENS = 12


@pytest.fixture(scope="module", autouse=True)
def connection() -> Iterator[None]:
    """One Ray for all runs of this file."""
    import ray

    start_local(logging.CRITICAL, num_cpus=2)
    yield
    ray.shutdown()


def corpus(path: Path, numbers: range) -> Path:
    rows = [{"id": f"r{i}", "text": f"{SENTENCES[i % 6]} {SENTENCES[i % 5]}"} for i in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(folder: Path, pair: Path, name: str, source: Path, **sections: Any) -> Config:
    keys: dict[str, dict[str, Any]] = {
        "input": {"path": str(source), "id_column": "id"},
        "output": {"path": str(folder / name), "rows_per_shard": 8},
        "models": {"verifier": str(pair / "verifier"), "drafter": None, "dtype": "float64"},
        "engine": {"slots": 8, "max_new_tokens": NEW_TOKENS},
        "policy": {"kind": "fixed"},
        "drafter": {"kind": "copy"},
    }
    for section, values in sections.items():
        keys[section] = {**keys.get(section, {}), **values}
    return from_dict(keys)


def outputs(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in pads.dataset(folder / name / "outputs").to_table().to_pylist()}


@pytest.mark.parametrize(("level", "compacts"), [("token", False), ("none", False), ("token", True)])
def test_a_rerun_takes_one_iteration_for_each_row(level: str, compacts: bool, tmp_path: Path, pair: Path) -> None:
    """With the ids that were kept, or with its text tokenised anew; with one row changed, one failed and one new."""
    first = config(tmp_path, pair, "first", corpus(tmp_path / "in.jsonl", range(ROWS)), telemetry={"level": level})
    run(first)
    if compacts:
        compact(str(tmp_path / "first"), 10**9)
    drafter = {"kind": ["previous"], "previous": str(tmp_path / "first"), "max_draft_tokens": 64}
    source = corpus(tmp_path / "again.jsonl", range(3, ROWS + 2))
    again = config(tmp_path, pair, "again", source, drafter=drafter, output={"rows_per_shard": 5})
    summary = run(again)
    before, now = outputs(tmp_path, "first"), outputs(tmp_path, "again")
    assert len(now) == ROWS - 1
    for key, row in now.items():
        if key in before:
            assert row["output"] == before[key]["output"]
        else:
            assert row["num_drafted_tokens"] == 0
    known = [row for key, row in now.items() if key in before]
    iterations = sum(row["num_iterations"] for row in known)
    if level == "token":
        assert iterations == len(known)
        assert all(set(row["token_source"]) <= {0, FROM_PREVIOUS} for row in known)
    else:
        # A random model says pieces that its tokenizer would put together.
        assert len(known) < iterations < sum(row["num_output_tokens"] for row in known)
    assert summary["lossless"] == "exact"


def test_a_memory_is_kept_with_the_run_for_its_resumption_and_for_the_next(tmp_path: Path, pair: Path) -> None:
    source = corpus(tmp_path / "in.jsonl", range(ROWS))
    first = config(tmp_path, pair, "first", source, drafter={"kind": ["memory"], "max_draft_tokens": 16})
    told = run(first)
    assert 0 < told["lookup_share"] < 1
    before = {key: row["output"] for key, row in outputs(tmp_path, "first").items()}
    lost = sorted((tmp_path / "first" / "outputs").iterdir())[1]
    lost.unlink()
    assert f"memory: begins with {told['output_tokens']:,} output tokens of earlier rows." in run(first)["notices"]
    assert {key: row["output"] for key, row in outputs(tmp_path, "first").items()} == before
    memory = {"kind": ["memory"], "memory": str(tmp_path / "first"), "max_draft_tokens": 16}
    run(config(tmp_path, pair, "next", source, drafter=memory))
    rows = outputs(tmp_path, "next")
    assert {key: row["output"] for key, row in rows.items()} == before
    assert all(row["num_iterations"] == 1 for row in rows.values()), "each source comes again"


def test_plan_says_how_many_rows_have_a_draft_and_run_refuses_what_is_no_run(
    tmp_path: Path, pair: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = corpus(tmp_path / "in.jsonl", range(8))
    run(config(tmp_path, pair, "first", source))
    paths = [
        f"input.path={corpus(tmp_path / 'more.jsonl', range(4, 16))}",
        *("input.id_column=id", f"output.path={tmp_path}/again", f"models.verifier={pair}/verifier"),
        "drafter.kind=[previous, memory]",
    ]
    capsys.readouterr()
    assert main(["plan", *paths, f"drafter.previous={tmp_path}/first"]) == 0
    assert f"of 4 of 12 rows looked up, in {tmp_path}/first" in capsys.readouterr().out
    missing = [*paths, f"drafter.previous={tmp_path}/nothing"]
    assert main(["plan", *missing]) == 2
    assert "error: drafter.previous: is no run folder" in capsys.readouterr().err
    nothing = {"kind": "previous", "previous": f"{tmp_path}/nothing"}
    with pytest.raises(ConfigError, match=r"drafter\.previous: is no run folder"):
        run(config(tmp_path, pair, "again", source, drafter=nothing))
    assert not (tmp_path / "again").exists()
