"""Signatures, scales of charts, and rows split into tokens."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmasd.reports.charts import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Bar, Chart, Line
from cmasd.reports.evidence import gather
from cmasd.reports.palette import level_of
from cmasd.reports.signatures import signatures
from cmasd.reports.tokens import MOST_CHARACTERS, by_word, pieces, sample_row
from tests.unit.reports.synthetic import BASELINE, Truth, make_run


def keys(tmp_path: Path, **run: Any) -> list[str]:
    return [one.key for one in signatures(gather(make_run(tmp_path, **run)))]


def test_each_signature_is_found_where_it_is_and_only_there(tmp_path: Path) -> None:
    assert keys(tmp_path, errors=False) == ["rollback"], "half of the iterations, here"
    fast = {**BASELINE, "speedup": 1.4, "speedup_low": 1.2, "speedup_high": 1.6}
    perhaps = {**BASELINE, "speedup_high": 1.1}
    hardly = {**BASELINE, "speedup": 0.98, "speedup_low": 0.97, "speedup_high": 0.99}
    unequal = {**fast, "exact_match": 0.8}
    address = str(tmp_path / "other")
    cases: list[tuple[list[str], dict[str, Any]]] = [
        (["rollback", "no-speed-up"], {"baseline": BASELINE}),
        (["rollback"], {"baseline": fast}),
        (["rollback", "no-speed-up"], {"baseline": perhaps}),
        (["rollback"], {"baseline": {**BASELINE, "drafted_tokens": 0, "acceptance_rate": None}}),
        (["rollback", "quality"], {"baseline": unequal}),
        (["rollback", "quality"], {"baseline": unequal, "verification": {"kind": "relaxed"}}),
        (["rollback", "not-monotone"], {"truth": lambda confidence: 1 - confidence}),
    ]
    for expected, run in cases:
        assert keys(tmp_path, address=address, errors=False, **run) == expected
    weights = {
        name: [one.weight for one in signatures(gather(make_run(tmp_path, address, baseline=run, errors=False)))]
        for name, run in (("sure", BASELINE), ("perhaps", perhaps), ("hardly", hardly))
    }
    assert weights == {
        "sure": ["problem", "problem"],
        "perhaps": ["problem", "notice"],
        "hardly": ["problem", "notice"],
    }


def test_what_concerns_few_iterations_is_no_problem(tmp_path: Path) -> None:
    """Drafts that fail, in a fiftieth of the iterations: told, but not as what is wrong with the run."""
    weights = {}
    for drafting in (0.02, 0.5):
        address = str(tmp_path / f"run {drafting}")
        run = make_run(tmp_path, address, errors=False, drafting=drafting, truth=lambda confidence: 1 - confidence)
        found = signatures(gather(run))
        weights[drafting] = {one.key: one.weight for one in found}
        assert f"({drafting:.1%} of all; above 40%)" in next(one.says for one in found if one.key == "rollback")
    assert weights == {
        0.02: {"rollback": "notice", "not-monotone": "notice"},
        0.5: {"rollback": "problem", "not-monotone": "problem"},
    }


@pytest.mark.parametrize(("rows", "found"), [(300, True), (60, False)])
def test_empty_slots_are_named_unless_the_run_is_hardly_more_than_its_end(
    tmp_path: Path, rows: int, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmasd.reports.signatures.LEAST_OCCUPANCY", 0.95)
    evidence = gather(make_run(tmp_path, rows=rows, errors=False))
    slots = 2 * evidence.stats.slot_iterations / evidence.stats.iterations
    monkeypatch.setattr("cmasd.reports.signatures.LEAST_ROWS_PER_SLOT", 150 / slots)
    assert ("idle-slots" in [one.key for one in signatures(evidence)]) == found


@pytest.mark.parametrize("truth", [lambda confidence: confidence, lambda confidence: 0.6], ids=["rising", "flat"])
def test_noise_is_not_a_fall(tmp_path: Path, truth: Truth) -> None:
    assert "not-monotone" not in keys(tmp_path, truth=truth, rows=150)


def chart(**parts: Any) -> Chart:
    return Chart("key", "Title", "Words.", "x", "y", ("x", "y"), [("1", "2")], **parts)


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=40))
def test_bars_stay_inside_their_frame(values: list[float]) -> None:
    drawn = chart(bars=[Bar(str(i), value) for i, value in enumerate(values)])
    for box in drawn.scale.boxes():
        assert box.left >= LEFT
        assert box.left + box.width <= WIDTH - RIGHT + 0.2
        assert TOP - 0.1 <= box.y <= box.bottom < HEIGHT
    ticks = drawn.scale.y_ticks()
    assert 2 <= len(ticks) <= 7
    assert len({tick.text for tick in ticks}) == len(ticks)
    assert len(drawn.scale.x_ticks()) <= 8


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1, max_size=40))
def test_lines_stay_inside_their_frame(points: list[tuple[float, float]]) -> None:
    scale = chart(lines=[Line("one", points)]).scale
    for pair in scale.path(Line("one", points)).split():
        x, y = map(float, pair.split(","))
        assert LEFT <= x <= WIDTH - RIGHT
        assert TOP - 0.1 <= y <= HEIGHT
    assert all(LEFT <= tick.at <= WIDTH - RIGHT for tick in scale.x_ticks())


def test_scales_have_round_steps() -> None:
    shares = chart(bars=[Bar("1", 0.3)], top=1.0, shares=True).scale
    assert [tick.text for tick in shares.y_ticks()] == ["0%", "20%", "40%", "60%", "80%", "100%"]
    assert chart(bars=[Bar("1", 7.0)]).scale.steps == [0, 2, 4, 6, 8]
    assert chart(bars=[Bar("1", 0.0)]).scale.steps == [0, 1]
    assert chart(lines=[Line("one", [(1, math.inf)])]).scale.steps == [0, 1]


def test_tints_by_confidence() -> None:
    assert [level_of(value) for value in (0.0, 0.19, 0.2, 0.99, 1.0)] == [0, 0, 1, 4, 4]


def decode(prefixes: Any) -> list[str]:
    """Bytes as tokens; 0 is special."""
    return [bytes(id for id in ids if id).decode(errors="replace") for ids in prefixes]


@given(st.text(max_size=20))
def test_pieces_add_up_to_the_text(text: str) -> None:
    ids = list(text.replace("\x00", "").replace("\ufffd", "").encode())
    found = pieces(ids, decode)
    assert len(found) == len(ids)
    assert "".join(found) == bytes(ids).decode()


def test_characters_of_several_tokens_stand_at_the_last() -> None:
    assert pieces(list("aé".encode()), decode) == ["a", "", "é"]
    assert pieces([97, 0, 98], decode) == ["a", "", "b"]


def test_a_word_is_as_likely_as_its_tokens_together() -> None:
    texts = ["One", " t", "wo", ",", " three", ""]
    assert by_word(texts, [-1.0, -2.0, -3.0, -4.0, math.nan, -5.0]) == [-1.0, -5.0, -5.0, -4.0, 0.0, 0.0]


def test_long_texts_are_cut() -> None:
    counts = ("drafted_tokens", "accepted_tokens", "iterations", "output_tokens")
    row = {"id": "1", "output": "x" * 10_000, "kept": "y", **{f"num_{name}": 1 for name in counts}}
    shown = sample_row("at random", row, None)
    assert len(shown.output) == MOST_CHARACTERS + 4
    assert (shown.kept, shown.tokens) == ([("kept", "y")], [])
