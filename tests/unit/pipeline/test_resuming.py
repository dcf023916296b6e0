"""What may differ when a run goes on: what exact output does not depend on, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from cmasd.config import Config, flatten, from_dict
from cmasd.core import RowError
from cmasd.errors import RunFolderError
from cmasd.io.runs import Run, look_at
from cmasd.pipeline import run as pipeline
from cmasd.pipeline.resuming import as_started, is_free
from cmasd.pipeline.run import run
from cmasd.telemetry.recorder import Row, record
from jobs.main import main


def config(folder: Path, **sections: Any) -> Config:
    output = {"path": str(folder / "run"), "rows_per_shard": 4}
    limits = {"max_failed_fraction": 1.0}
    return from_dict({"input": {"path": str(folder / "in.jsonl")}, "output": output, "limits": limits, **sections})


def begin(folder: Path, shards: int, **sections: Any) -> Config:
    """A run of two shards, of which the first are there."""
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(8)))
    asked = config(folder, **sections)
    state = look_at(asked)
    state.folder.start(asked, state.plan, {})
    for shard in list(state.plan.shards())[:shards]:
        state.folder.write_shard(shard, record([Row(str(i), RowError("read", "no"), None) for i in range(4)], "token"))
    return asked


def test_slots_may_be_lowered_and_raised_and_drafting_given_up(tmp_path: Path) -> None:
    asked = begin(tmp_path, shards=1, engine={"slots": 32})
    assert as_started(asked) == (asked, [])
    for slots in (8, 64, None):
        now = config(tmp_path, engine={"slots": slots}, policy={"kind": "plain"}, drafter={"max_draft_tokens": 2})
        known, changes = as_started(now)
        assert known == asked
        assert len(look_at(known).todo) == 1
        assert changes == [
            f"{change} since the run began; exact output does not depend on it."
            for change in (
                "drafter.max_draft_tokens: 5 -> 2",
                "policy.kind: goodput -> plain",
                f"engine.slots: 32 -> {'null' if slots is None else slots}",
            )
        ]


def test_a_summary_names_what_changed_and_keeps_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other shard is decoded by nobody here, only written."""

    def decode(asked: Config, state: Run, *_: object) -> None:
        for shard in state.todo:
            state.folder.write_shard(shard, record([Row("1", RowError("read", "no"), None)] * shard.rows, "token"))

    monkeypatch.setattr(pipeline, "_decode", decode)
    begin(tmp_path, shards=1, engine={"slots": 32})
    paths = [f"input.path={tmp_path}/in.jsonl", f"output.path={tmp_path}/run"]
    notice = "engine.slots: 32 -> 8 since the run began; exact output does not depend on it."
    assert main(["plan", *paths, "engine.slots=8"]) == 0
    assert f"notice: {notice}" in capsys.readouterr().out
    summary = run(config(tmp_path, engine={"slots": 8}))
    assert summary["notices"] == [notice]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert summary["fingerprint"] == manifest["fingerprint"]
    assert run(config(tmp_path, engine={"slots": 4}))["notices"] == [notice], "with 4, nothing was decoded"


LOSSY: dict[str, Any] = {"verification": {"kind": "relaxed"}}
SAMPLED: dict[str, Any] = {"verification": {"kind": "sampling"}}


@pytest.mark.parametrize(
    ("before", "now", "key"),
    [
        ({}, {"models": {"dtype": "bfloat16"}}, "models.dtype: auto -> bfloat16"),
        ({}, {"engine": {"max_new_tokens": 9}}, "engine.max_new_tokens: null -> 9"),
        ({}, {"telemetry": {"level": "none"}}, "telemetry.level: token -> none"),
        ({}, {"drafter": {"kind": "lookup"}}, "drafter.kind: model -> lookup"),
        ({}, {"confidence": {"kind": "entropy"}}, "confidence.kind: auto -> entropy"),
        ({}, LOSSY, "verification.kind: exact -> relaxed"),
        ({}, {"verification": {"kind": "budget"}}, "verification.kind: exact -> budget"),
        (LOSSY, {**LOSSY, "engine": {"slots": 8}}, "engine.slots: 32 -> 8"),
        (SAMPLED, {**SAMPLED, "engine": {"slots": 8}}, "engine.slots: 32 -> 8"),
        ({**LOSSY, "policy": {"kind": "plain"}}, LOSSY, "policy.kind: plain -> goodput"),
    ],
)
def test_what_changes_results_is_refused_by_name(
    before: dict[str, Any], now: dict[str, Any], key: str, tmp_path: Path
) -> None:
    begin(tmp_path, shards=1, **before)
    with pytest.raises(RunFolderError, match=f"another configuration \\({key}\\)"):
        run(config(tmp_path, **now))


def test_what_is_free() -> None:
    free = {key for key, _ in flatten(Config()) if is_free(key)}
    lengths = {"drafter.max_draft_tokens", "drafter.min_draft_tokens", "drafter.memory", "drafter.memory_tokens"}
    kinds = ("kind", "estimator", "alpha", "threshold", "explore_share")
    policy = {f"policy.{name}" for name in kinds}
    assert free == {"engine.slots", "engine.graphs"} | lengths | policy
