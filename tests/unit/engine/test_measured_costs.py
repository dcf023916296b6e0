"""The table of step costs: what is measured, and when it is measured again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmasd.confidence import build_confidence
from cmasd.config.speculation import ConfidenceConfig
from cmasd.drafters import ModelDrafter
from cmasd.drafters.choice import Choice
from cmasd.engine import Engine
from cmasd.engine import measured_costs as costs
from cmasd.engine.measured_costs import measure, step_table
from cmasd.generation.constraints import Constraints
from cmasd.policies import GoodputPolicy
from cmasd.policies.costs import StepTable
from cmasd.runner import Runner, load_runner
from cmasd.telemetry.stats import EngineStats
from tests.unit.engine.pairs import ragged_requests, shared_model, shared_pair, tiny_config

SLOTS, WINDOW = 5, 3


class Bench:
    """Two runners, and how often something was measured on them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.verifier, self.drafter = runner("copy"), drafting("noisy")
        self.measured = 0

        def counted(*arguments: Any) -> StepTable:
            self.measured += 1
            return StepTable((1,), ((float(self.measured),) * arguments[3],), (0.5,))

        monkeypatch.setattr(costs, "measure", counted)

    def table(self, models: tuple[str, ...] = ("a", "b"), slots: int = SLOTS, window: int = WINDOW) -> StepTable:
        return step_table(self.verifier, self.drafter, list(models), slots, window)


def runner(quality: str, family: str = "marian", max_length: int = 30) -> Runner:
    return load_runner(shared_model(family, quality), slots=SLOTS, max_length=max_length, max_source_length=12)


def drafting(quality: str, family: str = "marian") -> ModelDrafter:
    """Good for nothing but its forward."""
    model = runner(quality, family)
    choose = Choice(None, 0, None, model.vocabulary_size, model.device)
    confidence = build_confidence(ConfidenceConfig(), "max_prob")
    return ModelDrafter(model, confidence, Constraints(), choose, torch.tensor([1]))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return Bench(monkeypatch)


def kept(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("step-costs/*") if path.is_file())


# -------------------------------------------------------------------- measuring


@pytest.mark.parametrize("family", ["marian", "t5", "llama"])
@pytest.mark.parametrize(("slots", "counts"), [(1, (1,)), (3, (1, 3)), (4, (1, 4)), (5, (1, 4, 5))])
def test_what_is_measured(family: str, slots: int, counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row count with every window, each forward in a place of its own in the table."""
    monkeypatch.setattr(costs, "WARM_UPS", 1)
    fed: list[tuple[int, ...]] = []
    verifier, drafter = runner("copy", family), drafting("noisy", family)
    real = verifier.forward

    def counted(tokens_BT: Tensor, starts_B: Tensor, only_B: Tensor | None = None) -> Tensor:
        assert int(starts_B.max()) > 0, "a row at its very start is not a typical one"
        fed.append(tuple(tokens_BT.shape))
        return real(tokens_BT, starts_B, only_B)

    monkeypatch.setattr(verifier, "forward", counted)
    table = measure(verifier, drafter, slots, WINDOW)
    assert table.rows == counts
    assert set(fed) == {(rows, tokens) for rows in counts for tokens in range(1, WINDOW + 1)}
    assert [len(row) for row in table.verify] == [WINDOW] * len(counts)
    assert len(table.draft) == len(counts)
    assert all(seconds > 0 for row in (*table.verify, table.draft) for seconds in row)


@pytest.mark.parametrize(
    ("unit", "warm_ups", "repeats", "counts"), [(1.0, 1, 3, 1.0), (0.01, 3, 5, 2.0), (1e-6, 3, 25, 2.0)]
)
def test_the_lower_quartile_of_the_repeats_counts(
    monkeypatch: pytest.MonkeyPatch, unit: float, warm_ups: int, repeats: int, counts: float
) -> None:
    """Steps of 9, 2, 1, 3, 4 units in turn: few repeats where they are long, more where they are short."""
    asked: list[float] = []

    def clock() -> float:
        asked.append(0.0)
        step, ends = divmod(len(asked) - 1, 2)
        return [9.0, 2.0, 1.0, 3.0, 4.0][step % 5] * unit if ends else 0.0

    monkeypatch.setattr("time.perf_counter", clock)
    assert measure(runner("copy"), None, 1, 1) == StepTable((1,), ((counts * unit,),), (0.0,))
    assert len(asked) == 2 * (warm_ups + repeats)


@pytest.mark.parametrize("family", ["marian", "llama"])
def test_a_model_with_hardly_any_room_can_be_measured(family: str) -> None:
    """Prompt, prefix and window never reach past the slot."""
    table = measure(runner("copy", family, max_length=WINDOW + 2), None, 2, WINDOW)
    assert table.draft == (0.0,) * len(table.rows)


def test_measuring_leaves_no_trace_in_what_is_decoded_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The slots that were overwritten are prefilled before they are used."""
    outputs = []
    for folder in ("first", "first", "second"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / folder))
        engine = Engine(shared_pair("marian"), tiny_config(policy={"kind": "goodput"}))
        assert isinstance(engine.policy, GoodputPolicy)
        assert engine.policy.costs is not None
        assert engine.policy.costs.rows == (1, 3)
        results = engine.decode(ragged_requests(5, seed=31))
        outputs.append({result.key: result.token_ids.tolist() for result in results})
    assert outputs[0] == outputs[1] == outputs[2]
    assert [len(kept(tmp_path / folder)) for folder in ("first", "second")] == [1, 1]


# -------------------------------------------------------------------- keeping


def test_the_table_is_read_again_under_the_same_name(bench: Bench, tmp_path: Path) -> None:
    first = bench.table()
    assert bench.table() == first
    assert bench.measured == 1
    assert len(kept(tmp_path)) == 1, "no half-written file is left"
    assert kept(tmp_path)[0].parent == tmp_path / "cmasd" / "step-costs"


def test_whatever_the_costs_depend_on_is_in_the_name(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.table()
    bench.table(models=("a", "c"))
    bench.table(slots=SLOTS - 1)
    bench.table(window=WINDOW - 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    bench.table()
    bench.verifier = runner("copy", max_length=29)
    bench.table()
    bench.verifier.dtype = torch.bfloat16
    bench.table()
    assert bench.measured == 7
    bench.table()
    assert bench.measured == 7


DAMAGED = [
    "",
    "[",
    "[1, 2]",
    "{}",
    '{"rows": [1], "verify": [[1.0]]}',
    '{"rows": 1, "verify": 2, "draft": 3}',
    '{"rows": [1], "verify": [[1.0]], "draft": [0.5]}',
    "\0\xff",
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_file_is_measured_anew_and_mended(text: str, bench: Bench, tmp_path: Path) -> None:
    bench.table()
    [path] = kept(tmp_path)
    path.write_bytes(text.encode("latin-1"))
    again = bench.table()
    assert bench.measured == 2
    assert bench.table() == again
    assert bench.measured == 2
    assert set(json.loads(path.read_text())) == {"rows", "verify", "draft", "one_pass"}


def test_a_folder_that_cannot_be_written_to_is_no_error(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file where the folder should be refuses root too."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    first, second = bench.table(), bench.table()
    assert bench.measured == 2
    assert first != second


def test_without_a_setting_the_users_cache_folder_is_used(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    bench.table()
    assert kept(tmp_path)[0].parent == tmp_path / "home" / ".cache" / "cmasd" / "step-costs"


# -------------------------------------------------------------------- warming up


@pytest.mark.parametrize("family", ["marian", "t5", "llama"])
@pytest.mark.parametrize("drafter", ["none", "model", "parallel", "lookup"])
def test_warming_up_leaves_no_trace(family: str, drafter: str) -> None:
    """Both engines draw the same random numbers, so that anything left in a cache would show."""
    policy = {"kind": "plain" if drafter == "none" else "fixed"}
    asked = tiny_config(
        policy=policy,
        drafter={"kind": "model" if drafter == "none" else drafter},
        verification={"kind": "sampling"} if drafter == "model" else {},
    )
    cold, warm = Engine(shared_pair(family), asked), Engine(shared_pair(family), asked)
    warm.warm_up()
    assert warm.stats == EngineStats()
    assert warm.pending == 0
    for engine in (cold, warm):
        engine.submit(ragged_requests(7, seed=3))
    while cold.pending:
        one, other = cold.step(), warm.step()
        assert [result.key for result in one] == [result.key for result in other]
        for result, same in zip(one, other, strict=True):
            assert result.token_ids.tolist() == same.token_ids.tolist()
    assert cold.stats.drafted_tokens == warm.stats.drafted_tokens
    assert warm.pending == 0
