"""A router is trained: it beats what it began as, a killed training ends with the same weights, and DAPO is DAPO."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmasd.errors import ConfigError
from cmasd.policies.latency import Latency
from cmasd.training import router_rollouts
from cmasd.training.router_loss import advantages, clipped_loss, logprobs, reward
from cmasd.training.router_rollouts import ALWAYS, Rollouts, Speakers
from cmasd.training.router_scores import score_router
from cmasd.training.router_training import RouterTraining, curve, export_router
from cmasd.training.router_warm import Lessons, labelled, taught, warm_start
from tests.unit.training.arithmetic import (
    PRICES,
    SPELLINGS,
    WRONG,
    questions,
    sums_recipe,
    sums_rollouts,
)


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def rollouts() -> Rollouts:
    return sums_rollouts()


def training(folder: Path, rollouts: Rollouts, **schedule: Any) -> RouterTraining:
    return RouterTraining(sums_recipe(folder, **schedule), rollouts, questions(), PRICES)


def test_rewards_teach_what_agreement_cannot(tmp_path: Path, rollouts: Rollouts) -> None:
    """The warm start asks the large model wherever it would say another token; which of these matter, answers tell."""
    task = training(tmp_path, rollouts)
    trained, _ = task.train()
    assert task.warm is not None
    scores = {one.name: one for one in score_router(rollouts, questions(), trained, task.warm, 0.5)}
    router, warm, chance = (scores[name] for name in ("router", "warm start", "random router"))
    assert router.accuracy == scores["large alone"].accuracy == 1.0
    assert router.reward > warm.reward + 0.02
    assert router.reward > chance.reward + 0.1
    assert router.reward > max(scores["small alone"].reward, scores["entropy, tau 0.02"].reward) + 0.02
    assert router.small_share > warm.small_share
    export_router(trained, task.recipe)
    names = {file.name for file in (tmp_path / "router").iterdir()}
    assert names == {"config.json", "model.safetensors", "recipe.json", "curve.json"}
    lines = curve(task.work)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert np.mean([line["reward"] for line in lines[-3:]]) > np.mean([line["reward"] for line in lines[:3]])


@pytest.mark.parametrize(("latency_rows", "priced"), [(None, 80), (1, 1)])
def test_forwards_are_priced_at_the_rows_of_the_runs(
    tmp_path: Path, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch, latency_rows: int | None, priced: int
) -> None:
    """Rollouts are made 80 at a time."""
    asked = []

    def measured(verifier: Any, drafter: Any, costs: Any, rows: int) -> Latency:
        asked.append(rows)
        return PRICES

    monkeypatch.setattr(router_rollouts, "measured_latency", measured)
    recipe = sums_recipe(tmp_path)
    recipe = replace(recipe, router=replace(recipe.router, latency_rows=latency_rows))
    for _ in range(2):
        RouterTraining(recipe, rollouts, questions()).prepare()
        assert rollouts.latency == PRICES
    assert asked == [priced], "once: the second start reads what was measured"


def test_a_killed_training_ends_as_one_that_was_not(tmp_path: Path, rollouts: Rollouts) -> None:
    whole, _ = training(tmp_path / "whole", rollouts, steps=4).train()

    def kill(progress: Any) -> None:
        if progress.step == 2:
            raise Killed

    def kill_early(done: int, all: int) -> None:
        raise Killed

    for report in ({"learned": kill_early}, {"report": kill}):
        one = training(tmp_path / "killed", rollouts, steps=4)
        one.recipe = replace(one.recipe, checkpoint_seconds=0.0)
        with pytest.raises(Killed):
            one.train(**report)
    log = tmp_path / "killed" / "work" / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 3, "rew')
    resumed, _ = training(tmp_path / "killed", rollouts, steps=4).train()
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    assert curve(tmp_path / "killed" / "work") == curve(tmp_path / "whole" / "work")


def test_lessons_say_where_the_small_model_would_say_something_else(rollouts: Rollouts) -> None:
    """Of either model's tokens: the small one's own, and what it would say behind the large one's."""
    rollouts.latency = PRICES
    lessons = taught(rollouts, questions())
    assert lessons.said_Q.tolist() == [5] * 10
    assert lessons.right_Q.all()
    played = rollouts.play(questions(), Speakers(chance=ALWAYS))
    sums = [(start + 7 * step) % 10 for start in range(10) for step in range(1, 5)]
    assert lessons.differs_N.sum() > sum(one in (*SPELLINGS, *WRONG) for one in sums), "and behind large ones"
    for one, start in zip(played, range(10), strict=True):
        _, differs = labelled(one.decisions)
        small = [(start + 7 * step) % 10 in (*SPELLINGS, *WRONG) for step in range(1, 5)]
        assert differs[::2].tolist() == [*small, False], "the end of the sequence is clear"
        assert differs[1::2].tolist() == [*small[1:], False]
        assert one.num_small == 0
        assert one.right


def test_the_warm_start_misses_few(tmp_path: Path, rollouts: Rollouts) -> None:
    rollouts.latency = PRICES
    lessons, recipe = taught(rollouts, questions()), sums_recipe(tmp_path).router
    network = warm_start(recipe, lessons, seed=1)
    asked = lessons.features_NF[:, 0] > recipe.tau
    with torch.no_grad():
        large_N = network(torch.from_numpy(lessons.features_NF[asked])).numpy() > 0
    assert large_N[lessons.differs_N[asked]].mean() >= recipe.recall
    again = warm_start(recipe, lessons, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    nothing = Lessons(lessons.features_NF, np.zeros_like(lessons.differs_N), lessons.said_Q, lessons.right_Q)
    with pytest.raises(ConfigError, match=r"router\.tau: leaves nothing to learn"):
        warm_start(recipe, nothing, seed=1)


def test_a_wrong_answer_is_worth_nothing() -> None:
    assert reward(False, 0.1, 0.5) == 0.0
    assert reward(True, 1.0, 0.3) == pytest.approx(0.7)
    assert reward(True, 0.2, 0.3) > reward(True, 0.4, 0.3)


def test_groups_of_one_worth_say_nothing() -> None:
    rewards_PG = np.array([[1.0, 0.0, 0.0, 1.0], [0.7, 0.7, 0.7, 0.7], [0.0, 0.0, 0.0, 0.0]])
    found_PG = advantages(rewards_PG)
    assert found_PG[0].tolist() == [1.0, -1.0, -1.0, 1.0]
    assert np.isnan(found_PG[1:]).all()
    assert np.array_equal(advantages(rewards_PG * 3 + 1), found_PG, equal_nan=True)


def test_a_decision_may_become_likelier_by_more_than_less_likely() -> None:
    """Clip-higher: no gradient beyond 1 + 0.28 where it was good, or below 1 - 0.2 where it was bad."""
    ratio_N = torch.tensor([1.27, 1.29, 0.81, 0.79, 1.29, 0.79], dtype=torch.float64)
    advantage_N = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    logprob_N = ratio_N.log().requires_grad_()
    loss_N, clipped_N = clipped_loss(logprob_N, torch.zeros(6, dtype=torch.float64), advantage_N, 0.2, 0.28)
    loss_N.sum().backward()
    assert clipped_N.tolist() == [False, True, False, True, False, False]
    assert logprob_N.grad is not None
    assert (logprob_N.grad == 0).tolist() == clipped_N.tolist()
    assert loss_N[0].item() == pytest.approx(-1.27)
    assert loss_N[1].item() == pytest.approx(-1.28)


def test_decisions_have_the_probabilities_of_their_logits() -> None:
    logits_N = torch.tensor([2.0, 2.0, -1.0], dtype=torch.float64)
    both = logprobs(logits_N, torch.ones(3, dtype=torch.bool)), logprobs(logits_N, torch.zeros(3, dtype=torch.bool))
    assert torch.allclose(both[0].exp() + both[1].exp(), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(both[0].exp(), logits_N.sigmoid())


def test_weights_go_towards_what_was_good(tmp_path: Path, rollouts: Rollouts) -> None:
    """An update makes decisions of good rollouts likelier, and of bad ones less."""
    task = training(tmp_path, rollouts)
    network = task.prepare()
    [played] = rollouts.play(questions()[2:3], Speakers(chance=ALWAYS))
    decisions = played.decisions
    features_NF = torch.from_numpy(decisions.features_NF[decisions.asked_N])
    wants_large_N = torch.from_numpy(decisions.wants_large_N[decisions.asked_N])

    def likelihood() -> float:
        with torch.no_grad():
            return float(logprobs(network(features_NF), wants_large_N).sum())

    optimiser, before = torch.optim.SGD(network.parameters(), lr=0.01), likelihood()
    task._update(network, optimiser, [(played, 1.0)])
    after = likelihood()
    assert after > before
    task._update(network, optimiser, [(played, -1.0)])
    assert likelihood() < after
