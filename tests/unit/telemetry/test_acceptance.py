"""Judged tokens are counted once each, by source, place and confidence, and the counts add up over rows."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest

from cmasd.signals import FROM_SMALL, FROM_VERIFIER
from cmasd.telemetry.acceptance import SOURCES, Acceptance
from cmasd.telemetry.totals import Totals

NAN = math.nan


def batch(rng: np.random.Generator, rows: int) -> tuple[pa.Table, list[tuple[int, int, float, bool]]]:
    """Rows of an output, and their judged tokens: source, place, confidence, and whether it was accepted."""
    lists: dict[str, list[list[float]]] = {
        name: [[] for _ in range(rows)]
        for name in ("token_source", "token_confidence", *(f"iteration_{name}" for name in NAMES))
    }
    judged = []
    for row in range(rows):
        for _ in range(int(rng.integers(0, 6))):
            source, length = int(rng.choice(list(SOURCES))), int(rng.integers(0, 4))
            accepted, refused = int(rng.integers(0, length + 1)), (0.0, NAN)
            for place in range(min(accepted + 1, length)):
                confidence = float(np.float32(rng.choice([rng.random(), 1.0])))
                judged.append((source, place, confidence, place < accepted))
                if place == accepted:
                    refused = (source, confidence)
                else:
                    lists["token_source"][row].append(source)
                    lists["token_confidence"][row].append(confidence)
            lists["token_source"][row].append(rng.choice([FROM_VERIFIER, FROM_SMALL]))
            lists["token_confidence"][row].append(NAN)
            for name, value in zip(NAMES, (accepted, *refused), strict=True):
                lists[f"iteration_{name}"][row].append(value)
    return pa.table({name: pa.array(values, pa.list_(pa.float32())) for name, values in lists.items()}), judged


NAMES = ("accepted", "rejected_source", "rejected_confidence")


def counted(judged: list[tuple[int, int, float, bool]], number: int) -> dict[int, tuple[int, int]]:
    """(judged, accepted) by one of what is known of the tokens."""
    found: dict[int, tuple[int, int]] = {}
    for token in judged:
        key = min(9, int(token[2] * 10)) if number == 2 else int(token[number])
        yes, no = found.get(key, (0, 0))
        found[key] = yes + 1, no + token[3]
    return found


@pytest.mark.parametrize("seed", range(4))
def test_every_judged_token_counts_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    (one, of_one), (other, of_other) = batch(rng, 7), batch(rng, 9)
    found = Acceptance.of(one) + Acceptance.of(other)
    assert found == Acceptance.of(pa.concat_tables([one, other]))
    for number, counts in enumerate((found.by_source, found.by_position, found.by_confidence)):
        by_number = {place: pair for place, pair in enumerate(counts) if pair[0]}
        assert by_number == counted([*of_one, *of_other], number)


def test_totals_carry_them_through_json_and_older_ones_have_none() -> None:
    acceptance = Acceptance.of(batch(np.random.default_rng(5), 9)[0])
    totals = Totals(rows=9, acceptance=acceptance)
    assert Totals.from_dict(json.loads(json.dumps(totals.to_dict()))) == totals
    old = {name: value for name, value in totals.to_dict().items() if name != "acceptance"}
    assert Totals.from_dict(old).acceptance == Acceptance()


def test_shares_are_named_and_what_was_never_proposed_is_left_out() -> None:
    shown = Acceptance(by_source=((0, 0), (8, 6), (0, 0), (4, 1)), by_position=((3, 1),)).shown()
    assert shown["source"] == [
        {"of": "model", "judged": 8, "accepted": 6, "share": 0.75},
        {"of": "memory", "judged": 4, "accepted": 1, "share": 0.25},
    ]
    assert shown["position"] == [{"of": "1", "judged": 3, "accepted": 1, "share": 0.3333}]
    assert shown["confidence"] == []


def test_below_the_telemetry_level_nothing_is_counted() -> None:
    table = batch(np.random.default_rng(0), 9)[0]
    assert Acceptance.of(table.drop_columns(["token_source", "token_confidence"])).by_source == ()
    assert Acceptance.of(table.drop_columns(["token_source"])).by_position == Acceptance.of(table).by_position
    assert Acceptance.of(pa.table({"id": ["a"]})) == Acceptance()
