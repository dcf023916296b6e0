"""The figures behind a report equal those counted row by row."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from cmasd.errors import RunFolderError
from cmasd.reports.evidence import MOST_ERROR_KINDS, Evidence, Histogram, gather
from cmasd.reports.figures import actors
from tests.unit.reports.synthetic import MOST_DRAFTED, make_run


def rows_of(address: str) -> list[dict[str, Any]]:
    return list(pads.dataset(f"{address}/outputs").to_table().to_pylist())


def test_counts_by_position_length_and_place_in_the_row(tmp_path: Path) -> None:
    address = make_run(tmp_path)
    drafted, checked, accepted = np.zeros((3, MOST_DRAFTED))
    at: Counter[int] = Counter()
    for row in rows_of(address):
        steps = zip(
            row["iteration_draft_length"], row["iteration_accepted"], row["iteration_rejected_confidence"], strict=True
        )
        for place, (length, kept, rejected) in enumerate(steps):
            drafted[:length] += 1
            accepted[:kept] += 1
            checked[: kept + (not np.isnan(rejected))] += 1
            at[place] += length
    evidence = gather(address)
    found = evidence.iterations.by_position()
    for expected, counted in zip((drafted, checked, accepted), found, strict=True):
        np.testing.assert_array_equal(counted, expected)
    assert accepted[0] > accepted[-1] > 0
    np.testing.assert_array_equal(evidence.iterations.drafted_at.sums, [at[i] for i in range(len(at))])
    sample = evidence.sample("max_prob")
    assert sample is not None
    assert (sample.size, sample.accepted_J.sum()) == (checked.sum(), accepted.sum())
    first = evidence.sample("max_prob", position=0)
    assert first is not None
    assert first.size == checked[0]


def test_failed_rows_by_kind(tmp_path: Path) -> None:
    evidence = gather(make_run(tmp_path))
    assert sum(evidence.errors.values()) == evidence.summary["errors"] == 6
    [(kind, count)] = evidence.errors.items()
    assert (count, kind[:12]) == (6, "read: line #")
    assert evidence.error_examples[kind] == "<b>7</b>"


def test_kinds_of_errors_are_bounded(tmp_path: Path) -> None:
    evidence = gather(make_run(tmp_path, errors=False))
    import pyarrow as pa

    words = [chr(97 + i // 26) + chr(97 + i % 26) for i in range(MOST_ERROR_KINDS + 50)]
    evidence._add_errors(pa.record_batch({"id": words, "error": words}))
    assert len(evidence.errors) == MOST_ERROR_KINDS + 1
    assert evidence.errors["other errors"] == 50


def test_a_run_that_is_going_on_has_the_figures_of_its_finished_shards(tmp_path: Path) -> None:
    evidence = gather(make_run(tmp_path, unfinished_shards=4))
    rows = rows_of(str(tmp_path / "run"))
    assert not evidence.is_complete
    assert evidence.summary["rows"] == len(rows) == 192
    assert evidence.summary["output_tokens"] == sum(row["num_output_tokens"] for row in rows)
    assert gather(make_run(tmp_path, str(tmp_path / "none"), unfinished_shards=10)).summary["rows"] == 0


@pytest.mark.parametrize("level", ["none", "iteration"])
def test_lower_levels_hold_what_they_can(tmp_path: Path, level: str) -> None:
    full, less = (
        gather(make_run(tmp_path, str(tmp_path / name), telemetry={"level": name})) for name in ("token", level)
    )
    assert less.summary["acceptance_rate"] == full.summary["acceptance_rate"]
    assert less.sample("max_prob") is None
    same = np.array_equal(less.iterations.drafted.sums, full.iterations.drafted.sums)
    assert same == (level == "iteration")


def test_calibrated_confidences_are_the_ones_shown(tmp_path: Path) -> None:
    """What the run went by is recorded, whether a map made it or not."""
    maps = tmp_path / "maps.json"
    maps.write_text("{}")
    evidence = gather(make_run(tmp_path, confidence={"calibration": str(maps)}))
    plain = gather(make_run(tmp_path, str(tmp_path / "plain")))
    ours, theirs = evidence.sample("max_prob"), plain.sample("max_prob")
    assert ours is not None
    assert theirs is not None
    np.testing.assert_array_equal(ours.score_J, theirs.score_J)


def test_actors_span_from_their_first_shard_to_their_last(tmp_path: Path) -> None:
    evidence = gather(make_run(tmp_path))
    first, second = actors(evidence.shards)
    assert (first.name, second.name, first.shards + second.shards) == ("actor-0", "actor-1", 10)
    assert first.seconds == 8 + 10, "shard 8 starts 8 seconds after shard 0 and takes 10"
    assert first.output_tokens + second.output_tokens == evidence.summary["output_tokens"]
    assert actors(gather(make_run(tmp_path, str(tmp_path / "old"), timed=False)).shards) == []


def test_picks_are_few_fixed_and_the_worst_first(tmp_path: Path) -> None:
    evidence = gather(make_run(tmp_path))
    chosen = evidence.picks.read(evidence.folder)
    worst = max(row["num_drafted_tokens"] - row["num_accepted_tokens"] for row in rows_of(evidence.folder.address))
    assert [why for why, _, _ in chosen[:4]] == ["most draft tokens rejected"] * 3 + ["at random"]
    assert chosen[0][2]["num_drafted_tokens"] - chosen[0][2]["num_accepted_tokens"] == worst
    names = [row["id"] for _, _, row in chosen]
    assert 7 <= len(names) == len(set(names)) <= 9
    assert all(row["error"] is None for _, _, row in chosen)
    again = gather(evidence.folder.address)
    assert [row["id"] for _, _, row in again.picks.read(again.folder)] == names


def test_a_kept_time_that_python_has_not_ends_no_report(tmp_path: Path) -> None:
    address = make_run(tmp_path)
    for path in Path(address, "outputs").iterdir():
        file = pq.ParquetFile(path)
        table, notes = file.read(), file.metadata.metadata or {}
        far = pa.array([2**62] * table.num_rows, pa.timestamp("us"))
        table = table.set_column(table.schema.names.index("note"), "note", far)
        with pq.ParquetWriter(path, table.schema) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({key.decode(): value.decode() for key, value in notes.items()})
    evidence = gather(address)
    chosen = evidence.picks.read(evidence.folder)
    assert len(chosen) >= 7
    assert {row["note"] for *_, row in chosen} == {2**62}


def test_histograms_grow() -> None:
    histogram = Histogram()
    histogram.add(np.array([0, 1, 1]))
    histogram.add(np.array([3, 0]), np.array([2.0, 0.5]))
    assert histogram.sums.tolist() == [1.5, 2, 0, 2]
    assert histogram.at_least(4).tolist() == [4, 2, 2, 0]
    assert histogram.padded(2).tolist() == [1.5, 2]
    assert histogram.padded(5).tolist() == [1.5, 2, 0, 2, 0]


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is not a run folder"):
        gather(str(tmp_path))


def test_a_damaged_output_is_named(tmp_path: Path) -> None:
    address = make_run(tmp_path)
    (Path(address) / "outputs" / "part-00000-000003.parquet").write_bytes(b"PAR1 not really")
    evidence: Evidence = gather(address)
    assert len(evidence.shards) == 9, "a file that is not whole is left out"
