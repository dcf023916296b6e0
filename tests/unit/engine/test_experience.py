"""What an engine's policy has learned comes back in the next engine of the same pair and settings, and in no other."""

from pathlib import Path
from typing import Any

import pytest

from cmasd.engine import Engine
from cmasd.engine.experience import Experience
from tests.unit.engine.pairs import decode_plain, ragged_requests, shared_pair, tiny_config, tokens_of

COPY: dict[str, Any] = {"drafter": {"kind": "copy"}}  # which costs so little that it is looked at on any machine
KNOWN = {"leads": {"1": [0.5, 0.01, 0.0, 0.01, 0.0, 1.0]}}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "cmasd" / "experience"


def experience(**sections: dict[str, Any]) -> Experience:
    return Engine(shared_pair("marian"), tiny_config(**sections)).experience


def test_the_next_engine_begins_where_the_last_one_ended(folder: Path) -> None:
    """Whose rows are still those of plain decoding."""
    pair, requests = shared_pair("marian"), ragged_requests(40, seed=3)
    first = Engine(pair, tiny_config(**COPY))
    assert not first.experience.recall(), "there is nothing yet"
    for _ in range(30):  # as soon as a look was taken
        list(first.decode(requests))
        if first.policy.learned():
            break
    first.experience.keep()
    assert len(list(folder.iterdir())) == 1
    second = Engine(pair, tiny_config(**COPY, engine={"slots": 2}))
    assert second.experience.recall(), "however many slots there are"
    known, again = first.policy.learned(), second.policy.learned()
    assert again["drafts"] == known["drafts"]
    assert again["leads"].keys() == known["leads"].keys()
    results = {result.key: result for result in second.decode(requests)}
    assert tokens_of(results) == tokens_of(decode_plain(pair, requests))


@pytest.mark.parametrize(
    "other",
    [
        {"drafter": {"max_draft_tokens": 4}},
        {"drafter": {"kind": "copy"}},
        {"policy": {"estimator": "logistic"}},
        {"verification": {"kind": "relaxed"}},
        {"confidence": {"kind": "margin"}},
    ],
)
def test_other_settings_have_their_own(folder: Path, other: dict[str, Any]) -> None:
    kept = experience()
    kept._policy.begin_with({**KNOWN, "drafts": kept._policy.calibration.latest()})  # type: ignore[attr-defined]
    kept.keep()
    assert experience().recall()
    assert not experience(**other).recall()
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"leads": [], "drafts": {}}', '{"leads": {"1": [0]}}'])
def test_a_file_of_another_kind_is_as_good_as_none(folder: Path, text: str) -> None:
    kept = experience()
    kept._policy.begin_with({**KNOWN, "drafts": kept._policy.calibration.latest()})  # type: ignore[attr-defined]
    kept.keep()
    (file,) = folder.iterdir()
    file.write_text(text)
    assert not experience().recall()


def test_where_nothing_is_learned_or_it_would_mislead_nothing_is_kept(folder: Path, tmp_path: Path) -> None:
    for sections in (
        {"policy": {"kind": "fixed"}},
        {"policy": {"kind": "plain"}},
        {"drafter": {"kind": ["previous", "copy"], "previous": str(tmp_path)}},
    ):
        none = experience(**sections)
        none._policy.learned = lambda: {"anything": 1}  # type: ignore[method-assign]
        none.keep()
        assert not none.recall()
        assert not folder.exists()


def test_a_folder_that_cannot_be_written_to_costs_nothing_but_the_experience(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("a file in its place")
    kept = experience()
    kept._policy.begin_with({**KNOWN, "drafts": kept._policy.calibration.latest()})  # type: ignore[attr-defined]
    kept.keep()
    assert not experience().recall()
