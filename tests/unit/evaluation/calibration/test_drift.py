"""Maps of one run, judged on another."""

from cmasd.confidence import CalibrationMap
from cmasd.evaluation.calibration.drift import drift
from cmasd.evaluation.calibration.fit import (
    AS_IS,
    fit,
)
from tests.unit.evaluation.calibration.drawn import judged_from


def test_maps_of_another_run_are_judged_on_the_same_rows_as_its_own() -> None:
    """A map carries as far as the truth behind it: `max_prob` means the same in both runs, `margin` does not."""
    same, here, there = CalibrationMap("platt", a=0.4, b=-1.0), AS_IS, CalibrationMap("platt", a=0.3, b=-2.0)
    other = judged_from({"max_prob": same, "margin": there})
    fitted = fit(judged_from({"margin": here, "max_prob": same, "entropy": AS_IS}), "one")
    found = {one.score: one for one in drift(fitted, other, "other")}
    assert set(found) == {"margin", "max_prob"}, "those that both runs know"
    for one in found.values():
        assert one.raw.tokens == one.moved.tokens == one.own.tokens > 0
        assert one.own.ece < 0.03
        assert one.raw.ece > 0.1
    assert found["max_prob"].moved.ece < 0.03
    assert found["margin"].moved.ece > 0.1
    assert found["margin"].to_dict()["moved"]["ece"] == found["margin"].moved.ece
