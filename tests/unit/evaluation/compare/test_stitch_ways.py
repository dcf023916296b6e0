"""Two models in a comparison: alone, in turn, at the toss of a coin, with checked answers."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from cmasd.checkpoints.router_folder import save_router
from cmasd.codecs.text import TextCodec
from cmasd.core import Request
from cmasd.engine import Engine, Pair
from cmasd.evaluation.compare.comparison import Comparison, compare
from cmasd.evaluation.compare.sample import Sample
from cmasd.evaluation.compare.stitch_ways import RandomRouter, engines_of, rates, stitched
from cmasd.evaluation.plots import plot_answers
from cmasd.evaluation.speed.bench import BenchWatcher
from cmasd.evaluation.speed.lineup import Contender
from cmasd.models.router_network import RouterNetwork, RouterShape
from cmasd.policies.router import FEATURES
from jobs.compare_tables import answer_table, speed_table
from tests.unit.engine.pairs import decode, ragged_requests, shared_pair, tiny_config, tokens_of
from tests.unit.engine.stitch_oracle import Oracle

ENGINES = ["small_alone", "fixed_exact", "stitch", "stitch_once", "stitch_speculate", "random_router"]
SOURCES = [request.source for request in ragged_requests(12, seed=3)]


class Numbers:
    """A row's text is its last token."""

    def decode(self, rows: list[list[int]]) -> list[str]:
        return [str(row[-1]) for row in rows]


def numbered(max_new_tokens: int = 12) -> Pair:
    pair = shared_pair("qwen2", "noisy", max_new_tokens=max_new_tokens)
    return replace(pair, codec=cast(TextCodec, Numbers()))


def middle(pair: Pair) -> float:
    """Of the entropies of both models."""
    requests = [Request(key, source, 12) for key, source in enumerate(SOURCES)]
    alone = [Oracle(pair, tau).decode(request) for tau in (0.0, 1.0) for request in requests]
    return float(np.median([entropy for told in alone for entropy in told.entropies]))


@pytest.fixture(scope="module")
def measured() -> Comparison:
    """The answers are what the large model says, but for a third of the rows."""
    pair = numbered()
    config = tiny_config(
        compare={"engines": ENGINES, "taus": [0.0, middle(pair)], "answer": "exact", "max_seconds": 0.01},
        drafter={"max_draft_tokens": 3},
    )
    plain = tokens_of(decode(pair, tiny_config(policy={"kind": "plain"}), _requests(pair)))
    answers = [str(plain[key][-1]) if key % 3 else "wrong" for key in range(len(SOURCES))]
    assert engines_of(config) == 10
    return compare(pair, config, Sample(SOURCES, None, 1000.0, answers=answers))


def _requests(pair: Pair) -> list[Request]:
    return [Request(key, source, pair.max_new_tokens) for key, source in enumerate(SOURCES)]


def test_who_spoke_and_how_often_it_was_right(measured: Comparison) -> None:
    rows = {one.name.partition(" ")[0] + (" 0" if one.name.endswith(" 0") else ""): one for one in measured.results}
    assert len(rows) == len(measured.results) == 11
    plain, small = rows["ar_greedy"], rows["small_alone"]
    assert plain.accuracy == pytest.approx(2 / 3)
    assert plain.large_share == 1
    assert (small.large_share, small.lossless) == (0, "lossy")
    assert small.accuracy is not None
    assert small.accuracy < 2 / 3
    for name in ("stitch 0", "stitch_once 0", "stitch_speculate 0"):
        assert (rows[name].exact_match, rows[name].large_share, rows[name].lossless) == (1, 1, "exact")
        assert rows[name].switches_per_row == 0
    for name in ("stitch", "stitch_once", "stitch_speculate", "random_router"):
        share, switches = rows[name].large_share, rows[name].switches_per_row
        assert share is not None
        assert switches is not None
        assert 0 < share < 1
        assert switches > 0
        assert (rows[name].lossless, rows[name].mean_gap_nats) == ("lossy", None)
    once, stitch = rows["stitch_once"].large_share, rows["stitch"].large_share
    assert once is not None
    assert stitch is not None
    assert once < stitch, "the large model says one token at a time"
    assert rows["stitch_speculate"].acceptance_rate is not None


def test_the_random_router_is_of_equal_rate(measured: Comparison) -> None:
    rows = {one.name.partition(" ")[0]: one for one in measured.results if not one.name.endswith(" 0")}
    entropy, chance = rows["stitch"].large_share, rows["random_router"].large_share
    assert entropy is not None
    assert chance is not None
    assert abs(entropy - chance) < 0.3, "144 tokens each, in rows of 12"


def test_the_random_router_follows_its_leader() -> None:
    """At every turn, with what the other has counted by then."""
    pair = numbered(24)
    config = tiny_config(compare={"taus": [middle(pair)]})
    [leader] = stitched("stitch", pair, config, 3, [])
    leader.decoder.decode(_requests(pair)[:1])
    [router] = stitched("random_router", pair, config, 3, [leader])
    assert isinstance(router.decoder, RandomRouter)
    assert leader.stats is not None
    leader.decoder.decode(_requests(pair))
    router.decoder.decode(_requests(pair))
    policy: Any = router.decoder.engine.policy
    assert [policy.chance.dropped, policy.chance.returned] == rates(leader.stats) != [0, 0]


def test_a_router_takes_part_and_is_followed_by_chance(tmp_path: Path) -> None:
    """By its own tau; entropy alone does not look at it."""
    pair = numbered(24)
    save_router(RouterNetwork(RouterShape(FEATURES, 4, middle(pair))), tmp_path)
    engines = ["stitch", "stitch_router", "random_router"]
    sections: dict[str, Any] = {
        "compare": {"taus": [0.0, 0.5], "engines": engines},
        "stitch": {"router": str(tmp_path)},
    }
    config = tiny_config(**sections)
    assert engines_of(config) == 2 + 1 + 3
    warm: list[Contender] = []
    for name in engines:
        for one in stitched(name, pair, config, 3, warm):
            one.decoder.decode(_requests(pair))
            warm.append(one)
    policies: dict[str, Any] = {one.engine: cast(Any, one.decoder).engine.policy for one in warm}
    assert [name for name, policy in policies.items() if policy.router] == ["stitch_router"]
    assert policies["random_router as stitch_router"].chance is not None
    leader = next(one for one in warm if one.engine == "stitch_router")
    assert leader.lossless == "lossy"
    assert cast(Any, leader.decoder).stats.small_tokens > 0


def test_chance_is_a_rows_own_and_of_the_rates_asked() -> None:
    """Not by entropy: with all rows dropped the large model speaks next, with none never."""
    pair = numbered(24)
    requests = [Request(key, [5 + key % 40, 9, 3], 24) for key in range(60)]

    def told(random: list[float], slots: int = 8) -> tuple[dict[int, list[int]], list[float]]:
        engine = Engine(
            pair, tiny_config(policy={"kind": "stitch"}, stitch={"random": random}, engine={"slots": slots})
        )
        tokens = {one.key: one.token_ids.tolist() for one in engine.decode(requests)}
        return tokens, rates(engine.stats)

    tokens, found = told([0.3, 0.6])
    assert found == pytest.approx([0.3, 0.6], abs=0.06)
    assert told([0.3, 0.6], slots=1)[0] == tokens
    assert told([0.0, 1.0])[1][0] == 0
    assert told([1.0, 0.0])[0].keys() == tokens.keys()


def test_the_tables_say_how_many_are_right(measured: Comparison) -> None:
    rows = [one.to_dict() for one in measured.results]
    lines = answer_table(rows).splitlines()
    assert lines[2].split()[:3] == ["ar_greedy", "66.7%", "(39.1%-86.2%)"]
    assert "same decoding" not in "".join(line for line in speed_table(rows).splitlines() if "stitch 0." in line)


def test_right_answers_are_drawn_against_seconds(measured: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `bench`)")
    plot_answers([one.to_dict() for one in measured.results], tmp_path / "plot.svg", "a title")
    drawn = (tmp_path / "plot.svg").read_text()
    assert drawn.startswith("<?xml")


class Log(BenchWatcher):
    def __init__(self) -> None:
        self.left_out: dict[str, str] = {}

    def skipped(self, engine: str, reason: str) -> None:
        self.left_out[engine] = reason


@pytest.mark.parametrize(
    ("sections", "reasons"),
    [
        ({"drafter": {"kind": "copy"}}, dict.fromkeys(("stitch", "small_alone"), "the pair has no drafter")),
        ({}, {"random_router": "has no stitch to be compared with. Name stitch before it in compare.engines"}),
        ({}, {"stitch_router": "has no router. Name the folder of one as stitch.router"}),
    ],
)
def test_who_cannot_take_part_is_left_out(sections: dict[str, Any], reasons: dict[str, str]) -> None:
    log = Log()
    config = tiny_config(compare={"engines": list(reasons), "max_seconds": 0.01}, **sections)
    compare(numbered(2), config, Sample(SOURCES, None, 1000.0), watcher=log)
    assert log.left_out == reasons


def test_enough_rows_are_decoded() -> None:
    engines = {"engines": ["ar_greedy"], "max_relative_ci": 1e9, "min_rows": 30, "max_seconds": 600.0}
    [plain] = compare(numbered(1), tiny_config(compare=engines), Sample(SOURCES, None, 1000.0)).results
    assert 30 <= plain.rows < 30 + plain.rows / plain.chunks
