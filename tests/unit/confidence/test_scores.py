"""Confidence formulas against numpy written from their definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmasd.confidence import Scores, build_confidence
from cmasd.confidence.scores import score
from cmasd.config.speculation import ConfidenceConfig

NAMES = ("entropy", "margin", "softmax", "max_prob")


def by_definition(logits_V: np.ndarray, margin_form: str) -> dict[str, float]:
    """The components of one row in float64; 0 ln 0 = 0."""
    shifted = np.exp(logits_V - logits_V.max())
    probs_V = shifted / shifted.sum()
    positive = probs_V[probs_V > 0]
    z1, z2 = np.sort(logits_V)[::-1][:2]
    p1, p2 = np.sort(probs_V)[::-1][:2]
    sigmoid = 1 / (1 + np.exp(-(z1 - z2)))
    return {
        "entropy": 1 + (positive * np.log(positive)).sum() / np.log(len(logits_V)),
        "margin": sigmoid if margin_form == "printed" else 2 * sigmoid - 1,
        "softmax": p1 - p2,
        "max_prob": p1,
    }


def assert_defined(logits_BV: Tensor, margin_form: str = "full") -> Scores:
    scores = score(logits_BV, margin_form)
    for row, logits_V in enumerate(logits_BV.double().numpy()):
        for name, value in by_definition(logits_V, margin_form).items():
            assert getattr(scores, name)[row].item() == pytest.approx(value, abs=2e-5), name
    for name in NAMES:
        values = getattr(scores, name)
        assert values.dtype == torch.float32
        assert ((values >= 0) & (values <= 1)).all(), name
    return scores


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.integers(2, 200),
    scale=st.sampled_from([0.01, 1.0, 10.0, 100.0]),
    masked=st.floats(0, 1),
    margin_form=st.sampled_from(["full", "printed"]),
)
def test_components_follow_their_definitions(
    seed: int, vocabulary: int, scale: float, masked: float, margin_form: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_BV = scale * torch.randn(5, vocabulary, generator=generator)
    mask_BV = torch.rand(5, vocabulary, generator=generator) < masked
    mask_BV[:, seed % vocabulary] = False
    assert_defined(logits_BV.masked_fill(mask_BV, -torch.inf), margin_form)


def test_one_possible_token_is_certainty() -> None:
    """What a forced token leaves: one finite logit."""
    logits_BV = torch.full((1, 10), -torch.inf)
    logits_BV[0, 3] = 0.0
    scores = assert_defined(logits_BV)
    assert [getattr(scores, name).item() for name in NAMES] == [1, 1, 1, 1]


def test_a_uniform_distribution_is_no_confidence() -> None:
    scores = assert_defined(torch.full((1, 8), 3.0))
    assert [getattr(scores, name).item() for name in NAMES] == pytest.approx([0, 0, 0, 0.125], abs=1e-6)


def test_the_printed_margin_never_falls_under_a_half() -> None:
    logits_BV = torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    printed, full = score(logits_BV, "printed").margin, score(logits_BV, "full").margin
    assert printed.min() >= 0.5
    assert full.min() < 0.5
    torch.testing.assert_close(full, 2 * printed - 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_any_dtype_gives_float32(dtype: torch.dtype) -> None:
    assert_defined(torch.randn(4, 30, generator=torch.Generator().manual_seed(1)).to(dtype))


@pytest.mark.parametrize("kind", NAMES)
def test_a_single_component(kind: str) -> None:
    logits_BV = torch.randn(20, 30, generator=torch.Generator().manual_seed(2))
    confidence_B, scores = build_confidence(ConfidenceConfig(kind=kind))(logits_BV)  # type: ignore[arg-type]
    assert torch.equal(confidence_B, getattr(scores, kind))


def test_the_ensemble_weighs_entropy_margin_and_softmax() -> None:
    logits_BV = torch.randn(20, 30, generator=torch.Generator().manual_seed(3))
    confidence_B, scores = build_confidence(ConfidenceConfig(kind="ensemble", weights=[0.5, 0.2, 0.3]))(logits_BV)
    torch.testing.assert_close(confidence_B, 0.5 * scores.entropy + 0.2 * scores.margin + 0.3 * scores.softmax)
    assert ((confidence_B >= 0) & (confidence_B <= 1)).all()
