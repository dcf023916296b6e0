"""Advice follows from the figures."""

from types import SimpleNamespace
from typing import cast

from cmasd.evaluation.compare.comparison import Compared
from cmasd.evaluation.compare.recommend import recommend


def way(name: str, speedup: float, low: float, high: float, lossless: str = "exact", drafted: int = 9) -> Compared:
    figures = {"name": name, "speedup": speedup, "speedup_low": low, "speedup_high": high, "lossless": lossless}
    return cast(Compared, SimpleNamespace(**figures, drafted_tokens=drafted))


def test_a_way_that_drafted_nothing_is_no_choice() -> None:
    """It decodes plainly: what looks like a speed-up is noise."""
    plain, idle = way("ar_greedy", 1, 1, 1, drafted=0), way("goodput", 1.05, 1.01, 1.09, drafted=0)
    lossy = way("goodput_budget", 1.3, 1.2, 1.4, "lossy", drafted=0)
    advice = recommend([plain, idle, lossy])
    assert (advice.choice, advice.best_drafting, advice.faster_lossy) == (plain, None, None)
    assert advice.same_decoding == ("goodput", "goodput_budget")
    tied = way("fixed_exact", 1.2, 1.1, 1.3, "exact but for ties")
    assert recommend([plain, idle, tied]).choice is tied


def test_only_a_lossless_way_that_is_faster_beyond_doubt_is_recommended() -> None:
    plain = way("ar_greedy", 1, 1, 1, drafted=0)
    unsure, sure = way("goodput", 1.3, 0.98, 1.6), way("fixed_exact", 1.2, 1.1, 1.3)
    lossy, peer = way("fixed_relaxed", 1.6, 1.5, 1.7, "lossy"), way("ctranslate2", 3.0, 2.5, 3.5, "rows differ")
    int8, beam = way("ctranslate2_int8", 5.0, 4.0, 6.0, "lossy"), way("ar_beam", 2.0, 1.9, 2.1, "beam search")
    assert recommend([plain]).choice is plain
    assert recommend([plain]).best_drafting is None
    advice = recommend([plain, unsure])
    assert (advice.choice, advice.best_drafting) == (plain, unsure)
    advice = recommend([plain, sure, lossy, peer, int8, beam])
    assert (advice.choice, advice.faster_lossy, advice.faster_peer) == (sure, lossy, peer)
    advice = recommend([plain, way("fixed_exact", 1.55, 1.4, 1.65), lossy])
    assert advice.faster_lossy is None, "within the noise of the choice"
