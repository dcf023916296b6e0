"""Iterations that run ahead of the host are those that look, read one later; on a CPU, with a tape for a CUDA graph."""

import json
import logging
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch

from cmasd.confidence.maps import CalibrationMap, calibration_file
from cmasd.config.speculation import ConfidenceConfig
from cmasd.core import Draft, Logits, Request, Result, Verdict
from cmasd.engine import Engine, Pair, ahead
from cmasd.engine.iterations import Iterations
from cmasd.generation.constraints import Constraints
from cmasd.policies import GoodputPolicy, Observation
from cmasd.policies.costs import StepTable
from cmasd.runner import graphs
from cmasd.verification import Verification
from tests.unit.engine.pairs import (
    decode_plain,
    ragged_requests,
    self_pair,
    shared_pair,
    tiny_config,
    tokens_of,
)
from tests.unit.runner.tape import TapeRecorder

Sections = dict[str, dict[str, Any]]


def run(pair: Pair, sections: Sections, requests: list[Request], mode: str, slots: int = 4) -> "Run":
    return Run(pair, {**sections, "engine": {"slots": slots, "graphs": mode}}, requests)


class Run:
    """Requests decoded, half of them submitted while others run."""

    def __init__(self, pair: Pair, sections: Sections, requests: list[Request]) -> None:
        self.engine = Engine(pair, tiny_config(**sections))
        self.results: dict[int, Result] = {}
        self.engine.submit(requests[::2])
        for step in range(10_000):
            if step == 2:
                self.engine.submit(requests[1::2])
            for result in self.engine.step():
                assert result.key not in self.results, "a row came out twice"
                self.results[result.key] = result
            if step >= 2 and not self.engine.pending:
                return
        raise AssertionError("the engine does not come to an end")


def fixed(kind: str, k: int, **sections: dict[str, Any]) -> Sections:
    if k == 0:
        return {"policy": {"kind": "plain"}, **sections}
    return {"policy": {"kind": "fixed"}, "drafter": {"kind": kind, "max_draft_tokens": k}, **sections}


def assert_same(one: Run, other: Run) -> None:
    """Every number of every result and of the statistics, apart from seconds and from iterations that ran over."""
    assert one.results.keys() == other.results.keys()
    for key, result in one.results.items():
        mine, theirs = asdict(result), asdict(other.results[key])
        for trace in ("iterations", "tokens"):
            for fields, row in ((mine, result), (theirs, other.results[key])):
                fields[trace] = None if getattr(row, trace) is None else getattr(row, trace).values_NC
        teachings = mine.pop("teaching"), theirs.pop("teaching")
        for name, value in mine.items():
            if isinstance(value, np.ndarray | float):
                np.testing.assert_allclose(value, theirs[name], atol=1e-5, err_msg=name)
            else:
                assert value == theirs[name], name
        if teachings[0] is not None:
            np.testing.assert_array_equal(teachings[0]["ids_Nk"], teachings[1]["ids_Nk"])
    mine, theirs = asdict(one.engine.stats), asdict(other.engine.stats)
    # Ahead of the host drafts are all of one length, whatever is sent of them.
    for name in mine.keys() - {"busy_seconds", "draft_seconds", "drafter_tokens", "iterations", "slot_iterations"}:
        assert mine[name] == theirs[name], name
    lengths = [run.engine.state.lengths_2K.clone() for run in (one, other)]
    for lengths_2K in lengths:
        lengths_2K[:, 0] = 0  # whether rows without a draft count depends on their neighbours having one
    assert torch.equal(*lengths)


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Iterations are captured, as on a GPU: what waits, or uploads, raises. C kernels would run unseen."""
    monkeypatch.setattr(graphs, "can_capture", lambda device: True)
    monkeypatch.setattr(graphs, "Recorder", TapeRecorder)
    monkeypatch.setattr(graphs, "USES_BEFORE_CAPTURE", 2)
    rooms = "confidence.largest models.dense models.packed verification.exact drafters.base drafters.model"
    rooms += " engine.slots engine.trace"
    for room in rooms.split():
        monkeypatch.setattr(f"cmasd.{room}.kernels_for", lambda tensor: None, raising=False)
    extents: list[Any] = []
    launch = ahead.Ahead.launch

    def launched(self: ahead.Ahead, extent: Any) -> Any:
        flight = launch(self, extent)
        extents[:] = self.graphs.captured
        return flight

    monkeypatch.setattr(ahead.Ahead, "launch", launched)
    return extents


KINDS = [("model", 0), ("model", 1), ("model", 4), ("parallel", 1), ("parallel", 4)]
FAMILY_KINDS = [
    *(("marian", *kind) for kind in KINDS),
    *((family, *kind) for family in ("t5", "llama") for kind in [("model", 3), ("parallel", 3)]),
]


@pytest.mark.parametrize(("family", "kind", "k"), FAMILY_KINDS)
def test_ahead_or_not_everything_is_the_same(family: str, kind: str, k: int) -> None:
    """More rows than slots, of all lengths, without and with an end of sequence."""
    requests = ragged_requests(13, seed=8)
    output = tokens_of(decode_plain(shared_pair(family), requests))
    for eos in (None, output[5][len(output[5]) // 2]):
        pair = shared_pair(family, constraints=Constraints(eos_token_ids=() if eos is None else (eos,)))
        telemetry = {"level": "token", "teacher_top_k": 2}
        runs = [run(pair, fixed(kind, k, telemetry=telemetry), requests, mode) for mode in ("on", "off")]
        assert runs[0].engine._flight is not None, "iterations did run ahead"
        assert_same(*runs)


@pytest.mark.parametrize("k", [1, 3])
def test_an_end_at_every_place_of_the_window(k: int) -> None:
    """A drafter that is always right, and ends at each output position in turn."""
    request = Request(0, [5, 6, 7], 9)
    endless = tokens_of(decode_plain(shared_pair("marian"), [request]))[0]
    firsts = [eos for place, eos in enumerate(endless) if endless.index(eos) == place]
    assert len(firsts) > k + 1
    for eos in firsts:
        pair = shared_pair("marian", "copy", Constraints(eos_token_ids=(eos,)))
        requests = [request, Request(1, [8, 9], 9), Request(2, [5, 6, 7], 2)]
        assert_same(*(run(pair, fixed("model", k), requests, mode) for mode in ("on", "off")))


@pytest.mark.parametrize(("rule", "level"), [("relaxed", "none"), ("modulated", "token"), ("typical", "iteration")])
def test_every_rule_that_needs_no_host(rule: str, level: str) -> None:
    verification = {"kind": rule, "tau": 1.5, "gamma": 2.0}
    sections = fixed("model", 3, verification=verification, telemetry={"level": level}, confidence={"kind": "ensemble"})
    runs = [run(shared_pair("marian"), sections, ragged_requests(11, seed=2), mode) for mode in ("on", "off")]
    assert runs[0].engine._flight is not None
    assert_same(*runs)


@pytest.mark.parametrize("limit", [1, 2, 9])
def test_all_rows_end_at_once(limit: int) -> None:
    requests = [Request(key, [5 + key, 6], limit) for key in range(6)]
    for kind, k in KINDS[::2]:
        on, off = (run(shared_pair("llama"), fixed(kind, k), requests, mode, slots=3) for mode in ("on", "off"))
        assert_same(on, off)
        extra = on.engine.stats.iterations - off.engine.stats.iterations
        assert 0 <= extra <= 4, "each batch, and each pause of the input, is over one iteration later"


def test_drafts_of_the_verifiers_first_layers() -> None:
    requests = ragged_requests(9, seed=1)
    assert_same(*(run(self_pair("marian", 1), fixed("self", 3), requests, mode) for mode in ("on", "off")))


def test_rounding_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, requests = shared_pair("marian"), ragged_requests(15, seed=6)
    rounded = run(pair, fixed("parallel", 3), requests, "on", slots=7)
    monkeypatch.setattr(graphs, "rounded", lambda count: count)
    assert_same(rounded, run(pair, fixed("parallel", 3), requests, "on", slots=7))


@pytest.mark.parametrize(("family", "kind", "k"), [*FAMILY_KINDS, ("mbart", "model", 2), ("gpt2", "model", 2)])
def test_iterations_wait_for_nothing_and_can_be_replayed(tapes: list[Any], family: str, kind: str, k: int) -> None:
    requests = ragged_requests(12, seed=3)
    rules = Constraints(eos_token_ids=(9,), no_repeat_ngram_size=3, min_new_tokens=3, suppressed=(11,))
    pair = shared_pair(family, constraints=rules)
    replayed = run(pair, fixed(kind, k), requests, "on")
    assert tapes
    assert_same(replayed, run(pair, fixed(kind, k), requests, "off"))


def test_a_calibrated_confidence_waits_for_nothing(tapes: list[Any], tmp_path: Any) -> None:
    path = tmp_path / "map.json"
    knots = CalibrationMap("isotonic", x=(0.1, 0.4, 0.9), y=(0.2, 0.3, 1.0))
    path.write_text(json.dumps(calibration_file({"max_prob": knots}, ConfidenceConfig(), {})))
    sections = fixed("model", 3, confidence={"kind": "max_prob", "calibration": str(path)})
    pair, requests = shared_pair("marian"), ragged_requests(10, seed=4)
    replayed = run(pair, sections, requests, "on")
    assert tapes
    assert_same(replayed, run(pair, sections, requests, "off"))


def test_what_waits_is_found(tapes: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the two tests above would prove nothing."""
    commit = Iterations._commit

    def looks(self: Iterations, context: Any, *others: Any) -> Any:
        int(context.lengths_B.max())
        return commit(self, context, *others)

    monkeypatch.setattr(Iterations, "_commit", looks)
    with pytest.raises(RuntimeError, match="_local_scalar_dense cannot be captured"):
        run(shared_pair("marian"), fixed("model", 2), ragged_requests(10, seed=4), "on")


@pytest.mark.parametrize(
    "sections",
    [
        {"policy": {"kind": "survival"}},
        {"policy": {"kind": "fixed"}, "verification": {"kind": "sampling"}},
        {"policy": {"kind": "fixed"}, "drafter": {"kind": "lookup"}},
        {"policy": {"kind": "goodput"}, "verification": {"kind": "budget", "budget_nats_per_token": 0.1}},
    ],
)
def test_what_has_to_look_says_so(
    sections: Sections, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO, logger="cmasd.engine.engine"):
        decoded = run(shared_pair("marian"), sections, ragged_requests(5, seed=5), "on")
    assert decoded.engine._flight is None
    assert "'event': 'engine.looks'" in caplog.text
    assert len(decoded.results) == 5


def test_a_rule_that_is_exchanged_is_asked_again() -> None:
    """Recordings put one in that reads every draft."""
    pair, requests = shared_pair("marian"), ragged_requests(5, seed=5)
    engine = Engine(pair, tiny_config(**fixed("model", 2), engine={"graphs": "on"}))

    class Looks(Verification):
        def __init__(self, rule: Verification) -> None:
            self.rule = rule

        def verify(self, draft: Draft, logits: Logits) -> Verdict:
            return self.rule.verify(draft, logits)

    engine.iterations.verification = Looks(engine.verification)
    results = {result.key: result for result in engine.decode(requests)}
    assert engine._flight is None
    assert tokens_of(results) == tokens_of(decode_plain(pair, requests))


class TestGoodput:
    """It learns of every iteration but the last, one late, from copies that later iterations leave alone."""

    @pytest.fixture
    def told(self, monkeypatch: pytest.MonkeyPatch) -> list[Observation]:
        told: list[Observation] = []
        observe = GoodputPolicy.observe

        def keep(self: GoodputPolicy, observation: Observation) -> None:
            told.append(observation)
            made_up = table.seconds(len(observation.lengths_B), observation.confidence_BK.shape[1])
            observe(self, replace(observation, seconds=made_up))

        monkeypatch.setattr(GoodputPolicy, "observe", keep)
        table = StepTable((1,), ((1.0, 1.01, 1.02, 1.03),), (0.01,))
        monkeypatch.setattr("cmasd.engine.engine.step_table", lambda *shapes: table)
        return told

    @pytest.mark.parametrize("kind", ["model", "parallel"])
    def test_it_is_told_the_truth(self, told: list[Observation], tapes: list[Any], kind: str) -> None:
        pair, requests = shared_pair("marian"), ragged_requests(14, seed=9)
        sections: Sections = {"policy": {"kind": "goodput"}, "drafter": {"kind": kind, "max_draft_tokens": 3}}
        decoded = run(pair, sections, requests, "on")
        assert tapes
        assert tokens_of(decoded.results) == tokens_of(decode_plain(pair, requests))
        stats = decoded.engine.stats
        assert len(told) >= stats.iterations - 2, "the last before the second batch of rows, and the last of all"
        drafted = sum(int(one.lengths_B.sum()) for one in told)
        last = decoded.engine._flight
        assert last is not None
        assert drafted + int(last.draft.lengths_B.sum()) == stats.drafted_tokens
        kept = sum(int(one.accepted_B.sum()) for one in told)
        assert stats.accepted_tokens <= kept, "what came after an end of sequence is not in the output"
        assert all(one.seconds > 0 for one in told)
        for one in told:
            is_drafted_BK = np.arange(one.confidence_BK.shape[1]) < one.drafted_B[:, None]
            assert not np.isnan(one.confidence_BK[is_drafted_BK]).any(), "a row near its limit has room for fewer"

    def test_the_length_is_planned(self, told: list[Observation]) -> None:
        """Drafts that are always right, and cost next to nothing: all of one length, and the longest."""
        sections: Sections = {"policy": {"kind": "goodput"}, "drafter": {"max_draft_tokens": 3}}
        engine = Engine(shared_pair("marian", "copy"), tiny_config(**sections, engine={"graphs": "on"}))
        assert isinstance(engine.policy, GoodputPolicy)
        assert not engine.policy.looks
        list(engine.decode([Request(key, [5 + key % 9, 6], 24) for key in range(99)]))
        assert {one.confidence_BK.shape[1] for one in told} <= {0, 3}
        assert sum(one.confidence_BK.shape[1] == 3 for one in told) > 8
