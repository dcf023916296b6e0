"""Judged tokens are read from telemetry as the engine judged them: position, verdict and every score."""

from typing import Any

import numpy as np
import pytest
import torch

from cmasd.confidence.scores import score
from cmasd.core import Request
from cmasd.evaluation.calibration.judged import COLUMNS, REPORT, SCORES, SHARES, Judged
from cmasd.telemetry.recorder import Row, record
from tests.unit.engine.pairs import decode, ragged_requests, shared_pair, tiny_config

CONFIG: dict[str, Any] = {
    "policy": {"kind": "fixed"},
    "drafter": {"max_draft_tokens": 3},
    "telemetry": {"level": "token"},
}


def judged_of(requests: list[Request], **confidence: Any) -> tuple[Judged, Any]:
    """Tokens judged in a real run of a tiny pair, and the table they are read from."""
    config = tiny_config(**CONFIG, confidence=confidence)
    results = decode(shared_pair("marian"), config, requests)
    table = record([Row(str(key), results[key], "") for key in sorted(results)], "token")
    judged = Judged(config, seed=0)
    [batch] = table.combine_chunks().to_batches()
    judged.add(batch.select(list(COLUMNS)), (0, 0, 0))
    return judged, table


def test_each_accepted_token_and_each_first_rejection_counts_once_at_its_position() -> None:
    judged, table = judged_of(ragged_requests(40, seed=1))
    expected, rejected = np.zeros((3, 2)), 0
    for row in table.to_pylist():
        for accepted, confidence in zip(row["iteration_accepted"], row["iteration_rejected_confidence"], strict=True):
            expected[:accepted, 1] += 1
            if not np.isnan(confidence):
                expected[accepted, 0] += 1
                rejected += 1
    assert rejected > 20
    assert expected[1:, 1].sum() > 20
    assert judged.tokens == expected.sum()
    assert judged.rows == 40
    for name in SCORES:
        counts = judged.counts[name]
        np.testing.assert_array_equal(counts.accepted_PKJ.sum((0, 2)), expected[:, 1])
        np.testing.assert_array_equal(counts.tokens_PKJ.sum((0, 2)), expected.sum(1))


def test_scores_that_were_not_recorded_are_computed_from_the_components() -> None:
    """All are in the same run's telemetry, whichever of them `confidence.kind` was."""
    requests = ragged_requests(30, seed=2)
    as_recorded = {kind: judged_of(requests, kind=kind)[0].counts[kind] for kind in SCORES}
    computed = judged_of(requests, kind="entropy")[0].counts
    printed = judged_of(requests, kind="softmax", margin_form="printed")[0].counts
    for kind in SCORES:
        sums, others = as_recorded[kind].sums_PKJ.sum(), computed[kind].sums_PKJ.sum()
        assert others == pytest.approx(sums, rel=1e-5), kind
    assert printed["max_prob"].sums_PKJ.sum() == pytest.approx(as_recorded["max_prob"].sums_PKJ.sum(), rel=1e-5)


@pytest.mark.parametrize("form", ["full", "printed"])
def test_thelargest_probability_follows_from_both_margins(form: str) -> None:
    from cmasd.evaluation.calibration.judged import largest_probability

    logits_BV = torch.randn(500, 40, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 9, 500)[:, None]
    scores = score(logits_BV, form)
    found = largest_probability(scores.margin.double().numpy(), scores.softmax.double().numpy(), form)
    np.testing.assert_allclose(found, scores.max_prob, atol=2e-4)


def test_rows_are_split_by_the_seed_and_their_place_alone() -> None:
    judged, table = judged_of(ragged_requests(40, seed=1))
    [batch] = table.combine_chunks().to_batches()
    splits = []
    for seed, place in ((0, (0, 0, 0)), (1, (0, 0, 0)), (0, (0, 1, 0))):
        again = Judged(judged.config, seed)
        again.add(batch, place)
        splits.append(again.counts["max_prob"].tokens_PKJ)
    np.testing.assert_array_equal(splits[0], judged.counts["max_prob"].tokens_PKJ)
    assert not np.array_equal(splits[0], splits[1])
    assert not np.array_equal(splits[0], splits[2])
    share = splits[0][REPORT].sum() / splits[0].sum()
    assert 0.3 * SHARES[REPORT] < share < 3 * SHARES[REPORT]


def test_calibrated_confidences_are_not_taken_for_raw_ones() -> None:
    """The recorded confidence was mapped; the scores behind it are computed from the components."""
    requests = ragged_requests(20, seed=3)
    judged, table = judged_of(requests)
    again = Judged(tiny_config(**CONFIG, confidence={"calibration": "map.json"}), seed=0)
    [batch] = table.combine_chunks().to_batches()
    changed = batch.set_column(
        batch.schema.get_field_index("token_confidence"), "token_confidence", batch.column("token_tau")
    )
    again.add(changed, (0, 0, 0))
    assert again.counts["max_prob"].sums_PKJ.sum() == pytest.approx(judged.counts["max_prob"].sums_PKJ.sum(), rel=1e-5)
