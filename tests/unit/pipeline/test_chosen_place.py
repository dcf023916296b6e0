"""`actors.local=auto`: here for few rows, by a Ray for many, for several actors, for a cluster, and after a death."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cmasd.config import Config, from_dict
from cmasd.config.reading import load
from cmasd.errors import ConfigError
from cmasd.io.runs import Run, look_at
from cmasd.pipeline.attempt import Attempt
from cmasd.pipeline.chosen_place import FEW_ROWS, decided
from cmasd.pipeline.tally import Tally
from jobs.main import main


def asked(folder: Path, rows: int = 4, **actors: Any) -> tuple[Config, Run]:
    (folder / "in.jsonl").write_text('{"text": "one"}\n' * rows)
    config = from_dict({"input": {"path": f"{folder}/in.jsonl"}, "output": {"path": f"{folder}/run"}, "actors": actors})
    return config, look_at(config)


def is_here(config: Config, run: Run) -> bool:
    local = decided(config, run).actors.local
    assert isinstance(local, bool), "it is decided"
    return local


@pytest.mark.parametrize(
    ("rows", "actors", "expected"),
    [
        (4, {}, True),
        (FEW_ROWS, {}, True),
        (FEW_ROWS + 1, {}, False),
        (FEW_ROWS + 1, {"local": True}, True),
        (4, {"local": False}, False),
        (4, {"count": 1}, False),
        (4, {"max": 2}, False),
        (4, {"gpus_each": 0.5}, False),
    ],
)
def test_few_rows_of_one_actor_are_decoded_here(
    tmp_path: Path, rows: int, actors: dict[str, Any], expected: bool
) -> None:
    assert is_here(*asked(tmp_path, rows, **actors)) == expected


def test_a_cluster_that_is_there_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, run = asked(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert not is_here(config, run)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    assert is_here(config, run)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    assert not is_here(config, run)


@pytest.mark.parametrize(("state", "expected"), [("running", False), ("interrupted", True), ("failed", True)])
def test_a_start_that_died_has_a_ray_find_out_why(tmp_path: Path, state: str, expected: bool) -> None:
    config, run = asked(tmp_path)
    run.folder.start(config, run.plan, {})
    attempt = Attempt(run.folder, Tally(run.plan.rows, run.done))
    attempt.write(state)
    assert is_here(config, look_at(config)) == expected


def test_one_process_has_all_processors(tmp_path: Path) -> None:
    config, run = asked(tmp_path, cpus_each=0.5)
    assert decided(config, run).actors.cpus_each == os.cpu_count()
    on_ray = replace(config, actors=replace(config.actors, local=False))
    assert decided(on_ray, run).actors.cpus_each == 0.5


def test_plan_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked(tmp_path)
    words = ["plan", f"input.path={tmp_path}/in.jsonl", f"output.path={tmp_path}/run"]
    main([*words, "actors.local=auto"])
    assert "without Ray" in capsys.readouterr().out
    main([*words, "actors.local=false"])
    assert "without Ray" not in capsys.readouterr().out


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("auto", "auto")])
def test_the_key_reads_as_yaml_does(text: str, value: object) -> None:
    paths = ["input.path=a", "output.path=b"]
    assert load([], [*paths, f"actors.local={text}"]).actors.local is value
    for other in ("maybe", "AUTO"):
        with pytest.raises(ConfigError, match=rf"actors\.local: must be one of auto, true, false, got {other}\."):
            load([], [*paths, f"actors.local={other}"])
