"""Log lines name run, actor and shard, whatever thread writes them."""

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cmasd.config import Config, from_dict
from cmasd.pipeline import logs


@pytest.fixture(autouse=True)
def library_logger() -> Iterator[None]:
    """Left as it was."""
    logger = logging.getLogger("cmasd")
    before = (logger.handlers, logger.propagate, logger.level)
    yield
    logger.handlers, logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def config(**keys: Any) -> Config:
    return from_dict({"input": {"path": "i"}, "output": {"path": "s3://b/run"}, "logging": keys})


def test_json_lines_carry_run_actor_and_shard(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(config(format="json"), actor="a1")
    log = logging.getLogger("cmasd.anything")

    def write(shard: str) -> None:
        with logs.about(shard=shard):
            log.info("shard written\nsecond line", extra={"fields": {"rows": 3}})

    threads = [threading.Thread(target=write, args=(f"part-{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.warning("%d row(s) failed: %s", 2, "grün \u2028")
    lines = [json.loads(line) for line in capsys.readouterr().err.split("\n") if line]
    assert sorted(str(line["shard"]) for line in lines) == ["None", *(f"part-{i}" for i in range(8))]
    assert {(line["run"], line["actor"]) for line in lines} == {("s3://b/run", "a1")}
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert [line["rows"] for line in lines[:8]] == [3] * 8
    assert (lines[-1]["level"], lines[-1]["message"]) == ("warning", "2 row(s) failed: grün \u2028")


def test_text_lines_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(config())
    with logs.about(shard="part-7"):
        logging.getLogger("cmasd.x").info("written", extra={"fields": {"rows": 3}})
    line = capsys.readouterr().err
    assert line.endswith(" INFO written [run=s3://b/run actor=driver shard=part-7 rows=3]\n")


def test_a_traceback_is_a_field_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(config(format="json"), actor="a1")
    try:
        raise ValueError("odd")
    except ValueError as error:
        logging.getLogger("cmasd.x").error("failed", exc_info=error)
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["traceback"].endswith("ValueError: odd")


def test_the_level_is_kept_and_a_second_call_adds_no_second_line(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        logs.configure(config(level="warning"))
    logging.getLogger("cmasd.x").info("quiet")
    logging.getLogger("cmasd.x").warning("loud")
    assert capsys.readouterr().err.count("\n") == 1


def test_json_stays_json_where_letters_are_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(written, "latin-1", errors="backslashreplace"))
    logs.configure(config(format="json"), actor="a1")
    logging.getLogger("cmasd.x").info("größe 日本")
    sys.stderr.flush()
    assert json.loads(written.getvalue().decode("latin-1"))["message"] == "größe 日本"
