"""Evidence of tokens: what is read of telemetry, what signals say, and what estimators make of it."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn import metrics

from cmasd.config import from_dict
from cmasd.evaluation.calibration.judged_tokens import JudgedTokens, evidence_of, joined
from cmasd.evaluation.calibration.online import oracle, run_online, table_of
from cmasd.evaluation.calibration.signal_table import aucs, eces, judge, shifts
from cmasd.signals import FROM_COPY, FROM_DRAFT, FROM_MEMORY, FROM_VERIFIER

CONFIG = from_dict({"drafter": {"max_draft_tokens": 3}, "policy": {"kind": "fixed"}})
NAN = float("nan")


def batch() -> pa.RecordBatch:
    """A row of a model's drafts: two accepted, the third rejected; one of free drafts: one accepted, two not."""
    lists: dict[str, Any] = {
        "iteration_accepted": [[2], [1, 0]],
        "iteration_draft_length": [[3], [2, 1]],
        "token_source": [[FROM_DRAFT, FROM_DRAFT, FROM_VERIFIER], [FROM_COPY, FROM_VERIFIER, FROM_VERIFIER]],
        "token_confidence": [[0.9, 0.8, NAN], [0.7, NAN, NAN]],
        "iteration_rejected_confidence": [[0.3], [0.2, 0.1]],
        "iteration_rejected_source": [[FROM_DRAFT], [FROM_COPY, FROM_MEMORY]],
    }
    for name in ("entropy", "margin", "softmax"):
        lists[f"token_{name}"] = [[0.5, 0.5, NAN], [NAN, NAN, NAN]]
        lists[f"iteration_rejected_{name}"] = [[0.4], [NAN, NAN]]
    return pa.RecordBatch.from_pydict({name: pa.array(values) for name, values in lists.items()})


def test_tokens_are_read_in_order_with_their_sources() -> None:
    found = evidence_of(CONFIG, batch())
    assert found.draft_N.tolist() == [0, 0, 0, 1, 1, 2]
    assert found.position_N.tolist() == [0, 1, 2, 0, 1, 0]
    assert found.accepted_N.tolist() == [1, 1, 0, 1, 0, 0]
    assert found.confidence_N == pytest.approx([0.9, 0.8, 0.3, 0.7, 0.2, 0.1])
    assert found.source_N.tolist() == [FROM_DRAFT] * 3 + [FROM_COPY] * 2 + [FROM_MEMORY]
    assert (found.sent_I.tolist(), found.accepted_I.tolist()) == ([3, 2, 1], [2, 1, 0])
    assert found.rate_N == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.5, 0.5]), "of the row's earlier drafts: 1 of 2"
    twice = joined([found, found])
    assert (twice.rows, twice.draft_N[-1], twice.row_N[6]) == (4, 5, 2)


def made_up(rows: int = 150, seed: int = 0) -> JudgedTokens:
    """Entropy tells acceptance, confidence nothing; twelve drafts of a row."""
    rng, tokens = np.random.default_rng(seed), []
    for draft in range(rows * 12):
        for position in range(3):
            confidence, entropy = rng.uniform(0.05, 0.95), rng.choice([0.1, 0.95], p=[0.3, 0.7])
            is_accepted = rng.random() < entropy
            tokens.append((draft // 12, draft, position, is_accepted, confidence, entropy))
            if not is_accepted:
                break
    row_N, draft_N, position_N, accepted_N, confidence_N, entropy_N = np.array(tokens, dtype=float).T
    components_N3 = np.stack([entropy_N, confidence_N, 0.5 * confidence_N], axis=1)
    row_N, draft_N, position_N = (one.astype(np.int64) for one in (row_N, draft_N, position_N))
    source_N, sent_I = np.full(len(row_N), FROM_DRAFT), np.full(rows * 12, 3)
    return JudgedTokens(CONFIG, row_N, draft_N, position_N, accepted_N, confidence_N, components_N3, source_N, sent_I)


def test_the_signal_that_tells_is_told_from_those_that_do_not() -> None:
    found = {(one.name, one.position): one for one in judge(made_up(), seed=0)}
    entropy, confidence, best = (found[name, None] for name in ("entropy", "confidence", "logistic"))
    assert entropy.auc.low > 0.75 > 0.55 > confidence.auc.high
    assert entropy.auc.low < entropy.auc.value < entropy.auc.high
    assert entropy.ece.value < 0.05 < confidence.ece.value
    assert confidence.ece_mapped.value < 0.1
    assert best.auc.value > 0.75
    assert best.log_loss_nats.value < confidence.log_loss_nats.value
    assert found["entropy", 1].tokens > found["entropy", 2].tokens


def test_the_area_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    score_N, accepted_N = rng.integers(0, 9, 200) / 10, (rng.random(200) < 0.4).astype(float)
    weight_RN = rng.integers(0, 4, (5, 200)).astype(float)
    for area, weight_N in zip(aucs(score_N, accepted_N, weight_RN), weight_RN, strict=True):
        assert area == pytest.approx(metrics.roc_auc_score(accepted_N, score_N, sample_weight=weight_N))
    assert np.isnan(aucs(score_N, np.ones(200), weight_RN)).all()
    assert eces(np.full(4, 0.75), np.array([1.0, 1, 1, 0]), np.ones((1, 4))) == pytest.approx([0.0])


def test_estimators_predict_before_they_learn_and_the_oracle_bounds_them() -> None:
    found = {one.name: one for one in run_online(made_up())}
    assert found["signals"].auc > 0.75 > found["logistic"].auc
    assert found["signals"].ece < 0.05
    for cost in ("cheap", "dear"):
        bound = found["oracle"].speed[cost]
        assert all(one.speed[cost] <= bound for one in found.values())
    assert found["logistic"].speed["dear"] < found["signals"].speed["dear"], "where drafts are cheap all are sent"


def test_the_oracle_drafts_what_is_accepted() -> None:
    curve = table_of(0.0, 0.1, 3, one_pass=False).curve(8)
    assert oracle(np.full(16, 2), 3, curve) == pytest.approx(3 / 1.2)
    assert oracle(np.zeros(16, dtype=int), 3, curve) == 1.0


def test_a_run_like_the_other_does_not_drift() -> None:
    found = {one.name: one for one in shifts(made_up(seed=1), made_up(seed=2), seed=0)}
    assert found["entropy"].distance < 0.06
    assert abs(found["entropy"].ece_moved - found["entropy"].ece_own) < 0.03
    assert found["entropy"].auc > 0.75
