"""What `cmasd plan` finds beforehand is what the run would say; where that is not certain, it keeps silent."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cmasd.checkpoints import by_name as models
from cmasd.checkpoints import parallel_folder, router_folder
from cmasd.config import Config, from_dict
from cmasd.engine import load_pair
from cmasd.engine.capacity import need_of, resolve
from cmasd.errors import ConfigError, ModelError
from cmasd.kernels import cache_folder
from cmasd.pipeline import estimate, foresight, models_there
from cmasd.pipeline.address import keep_token_to_ourselves
from cmasd.pipeline.foresight import (
    look_ahead,
    machine_problems,
    memory_problems,
    memory_remarks,
    place_bytes,
    row_bytes,
    row_places,
    size,
    weight_bytes,
)
from cmasd.pipeline.models_there import Found, find
from jobs.main import main

BUNDLED = models_there.PAIRS / "en-de" / "verifier"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster and no GPU."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(foresight, "visible_gpus", list)


def config(**sections: Any) -> Config:
    return from_dict({"input": {"path": "in"}, "output": {"path": "out"}, "models": {"device": "cpu"}, **sections})


def problems(**sections: Any) -> list[str]:
    return look_ahead(config(**sections)).problems


def without(folder: Path, *patterns: str) -> Path:
    """A copy of the bundled verifier that lacks files."""
    shutil.copytree(BUNDLED, folder)
    for pattern in patterns:
        for file in folder.glob(pattern):
            file.unlink()
    return folder


def broken(case: str, folder: Path) -> str:
    """A model that cannot be loaded."""
    if case == "no weights":
        return str(without(folder / "model", "*.safetensors"))
    if case == "a pickle":
        (without(folder / "model", "*.safetensors") / "pytorch_model.bin").write_bytes(b"")
    if case == "no configuration":
        without(folder / "model", "config.json")
    if case == "no tokenizer":
        without(folder / "model", "tokenizer*")
    if case == "a file":
        (folder / "model").write_text("")
    return "" if case == "no name" else str(folder / "model")


@pytest.mark.parametrize(
    "case", ["no folder", "no name", "a file", "no configuration", "no weights", "a pickle", "no tokenizer"]
)
def test_a_model_that_is_not_there_is_told_as_loading_it_tells(case: str, tmp_path: Path) -> None:
    name = broken(case, tmp_path)
    asked = config(models={"verifier": name, "device": "cpu"}, policy={"kind": "plain"})
    with pytest.raises(ModelError) as caught:
        load_pair(asked)
    assert look_ahead(asked).problems == [str(caught.value)]


def test_names_are_resolved_alike() -> None:
    assert models_there.bundled_names() == models.bundled_names()
    assert (models_there.PAIRS, models_there.PARALLEL) == (models.PAIRS, parallel_folder.MODEL_TYPE)
    assert models_there.TOKENIZER_FILES == models._TOKENIZER_FILES
    for name in [*models.bundled_names(), str(BUNDLED)]:
        assert find(name).folder == models.resolve(name)
        assert find(name).problem is None
    assert find("someone/something").problem is None, "the hub's to answer"
    assert find("some one").problem is not None


@pytest.mark.parametrize(
    "sections",
    [
        {"models": {"drafter": "en-de/parallel", "device": "cpu"}},
        {
            "models": {"drafter": "en-de/parallel", "device": "cpu"},
            "drafter": {"kind": "parallel", "max_draft_tokens": 9},
        },
    ],
)
def test_a_drafter_of_the_wrong_kind_is_told_as_loading_it_tells(sections: dict[str, Any]) -> None:
    with pytest.raises((ModelError, ConfigError)) as caught:
        load_pair(config(**sections))
    assert problems(**sections) == [str(caught.value)]


def test_the_bundled_parallel_drafter_is_named_where_another_was_given(tmp_path: Path) -> None:
    said = problems(drafter={"kind": "parallel"})
    assert said == [
        "models.drafter: en-de/drafter is not a folder with a parallel drafter, which drafter.kind 'parallel' needs. "
        "Set models.drafter=en-de/parallel, which is bundled, or set drafter.kind=model."
    ]
    other = str(without(tmp_path / "model"))
    [said_of_another] = problems(drafter={"kind": "parallel"}, models={"verifier": other, "device": "cpu"})
    assert "Train one with cmasd train" in said_of_another
    fits = {"drafter": "en-de/parallel", "device": "cpu"}
    assert problems(drafter={"kind": "parallel"}, models=fits) == []
    assert problems(drafter={"kind": "parallel"}, policy={"kind": "plain"}) == [], "plain decoding loads none"


def test_processors_and_gpus_that_are_not_there() -> None:
    gpu = config(actors={"gpus_each": 1, "count": 2})
    assert machine_problems(gpu, gpus=2) == []
    assert machine_problems(gpu, gpus=1) == [
        "actors.gpus_each: 2 actor(s) of 1 GPU each need 2, this machine has 1. Lower actors.gpus_each or actors.count."
    ]
    assert "1e+06 CPU each" in machine_problems(config(actors={"cpus_each": 1e6}), gpus=0)[0]
    assert "models.device: is cuda" in machine_problems(config(models={"device": "cuda"}), gpus=0)[0]


def test_a_clusters_machine_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    outlook = look_ahead(config(actors={"gpus_each": 8}, engine={"slots": 10**9}, models={"verifier": "a/b"}))
    assert outlook.problems == []
    assert [remark.split(":")[0] for remark in outlook.remarks] == ["a/b", "RAY_ADDRESS"]


@pytest.mark.parametrize("kind", ["fixed", "plain"])
def test_memory_is_a_lower_bound_of_what_the_engine_asks_for(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan refuses nothing that would run, and not much passes that would be refused."""
    asked = config(policy={"kind": kind}, engine={"slots": 100})
    pair = load_pair(asked)
    need = need_of(pair, asked).least(100)
    found = [find("en-de/verifier"), *([] if kind == "plain" else [find("en-de/drafter")])]
    least = sum(
        weight_bytes(asked, one, "cpu")
        + 200 * row_bytes(asked, one, "cpu")
        + place_bytes(asked, one, "cpu") * sum(row_places(asked, one))
        for one in found
    )
    weights = sum(weight.nbytes for model in (pair.verifier, pair.drafter) if model for weight in model.parameters())
    assert 0.3 * need < least <= need + weights
    monkeypatch.setattr(foresight, "free_bytes", lambda: least)
    assert memory_problems(asked, found, "cpu") == []
    monkeypatch.setattr(foresight, "free_bytes", lambda: least - 1)
    assert "engine.slots: does not fit into memory, got 100" in memory_problems(asked, found, "cpu")[0]
    assert "expected at most 99." in memory_problems(asked, found, "cpu")[0]
    monkeypatch.setattr("cmasd.engine.capacity.free_bytes", lambda device: least // 2)
    with pytest.raises(ConfigError, match=r"engine\.slots: does not fit into memory, got 100"):
        resolve(pair, asked)


def test_long_rows_that_share_memory_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen2.5-1.5B's shape: 57 kB a token in float32, 1.9 GB for a row of all its positions."""
    shape = {"num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "hidden_size": 1536}
    found = Found("qwen", None, {"model_type": "qwen2", "max_position_embeddings": 32768, **shape})
    asked = config(engine={"slots": 8, "max_source_tokens": None, "max_new_tokens": 256})
    each = 28 * 2 * 2 * 128 * 4
    assert place_bytes(asked, found, "cpu") == each
    assert row_places(asked, found) == (32768, 0)
    assert (row_bytes(asked, found, "cpu"), row_bytes(asked, found, "cuda")) == (128 * each, 32768 * each)
    slots, row = 8 * 2 * 128 * each, 32768 * each
    monkeypatch.setattr(foresight, "free_bytes", lambda: slots + row)
    assert memory_problems(asked, [found], "cpu") == []
    assert memory_remarks(asked, [found], "cpu") == [
        "engine.cache_tokens: 8 rows as long as allowed do not fit into memory together; rows of up to 32,768 tokens "
        "in all do, and others wait."
    ]
    monkeypatch.setattr(foresight, "free_bytes", lambda: slots + row - 1)
    [said] = memory_problems(asked, [found], "cpu")
    assert "14.7 MB a slot, and 1.88 GB for a row as long as allowed" in said
    monkeypatch.setattr(foresight, "free_bytes", lambda: slots + 8 * row)
    assert memory_remarks(asked, [found], "cpu") == memory_problems(asked, [found], "cpu") == []


@pytest.mark.parametrize(
    ("models", "name", "each"),
    [
        ({}, "verifier", 2),
        ({"dtype": "float32"}, "verifier", 2),
        ({"dtype": "float64"}, "verifier", 8),
        ({"dtype": "int8"}, "verifier", 1),
        ({}, "drafter", 1),
        ({"drafter_dtype": "same"}, "drafter", 2),
        ({"drafter_dtype": "int4"}, "drafter", 0.5625),
        ({"dtype": "int8", "drafter_dtype": "int4"}, "drafter", 0.5625),
        ({"dtype": "int8", "drafter_dtype": "int4"}, "verifier", 1),
    ],
)
def test_weights_of_16_bits_stay_so_where_they_are_packed(
    models: dict[str, str], name: str, each: float, tmp_path: Path
) -> None:
    """What is counted is no more than what loading keeps, or a plan would refuse what runs."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(1000))
    names = {"verifier": str(tmp_path / "verifier"), "drafter": str(tmp_path / "drafter")}
    asked = config(models={**names, "device": "cpu", **models})
    for model_type, expected in (("qwen2", each), ("marian", 8 if each == 8 else 4)):
        found = Found(str(folder), folder, {"model_type": model_type, "dtype": "bfloat16"})
        assert weight_bytes(asked, found, "cpu") == int(500 * expected)


def test_free_memory_is_that_of_the_container(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable: 800 kB\n")
    assert foresight.free_bytes(tmp_path) == 800 * 1024
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("5000\n")
    (group / "memory.current").write_text("4000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 300\n")
    assert foresight.free_bytes(tmp_path) == 1300
    (group / "memory.max").write_text("max\n")
    assert foresight.free_bytes(tmp_path) == 800 * 1024
    assert foresight.free_bytes(tmp_path / "nowhere") is None
    assert [size(count) for count in (7, 1500, 2.5e9)] == ["7 bytes", "1.5 kB", "2.5 GB"]


SUMMARY = {
    "attempts": 1,
    "rows": 100,
    "input_tokens": 1000,
    "output_tokens": 2000,
    "seconds_by_phase": {"start_up": 60.0},
    "actor_hours": {"decoding": 10 / 3600},
}


def test_an_estimate_by_the_table_and_by_the_last_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 tokens a row go in; 10 rows at once take 0.02 s a step."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = config(cost={"accelerator_per_hour": 36.0})
    texts = ["x" * 16] * 5
    first = estimate.estimate(asked, texts, 100, 2, None, most=256)
    assert (first.input_tokens, first.output_tokens, first.seconds, first.cost) == (400, 400, None, None)
    estimate.note_steps(asked, 10, (1, 4, 10), (0.01, 0.015, 0.02))
    table = estimate.estimate(asked, texts, 100, 2, None, most=256)
    assert table.seconds == pytest.approx(400 / 10 * 0.02 / 2)
    assert table.is_least
    estimate.note_run(asked, SUMMARY)
    known = estimate.estimate(asked, texts, 100, 2, None, most=256)
    over_table = 10 / (2000 / 10 * 0.02)
    assert (known.output_tokens, known.is_least, known.start_up_seconds) == (800, False, 60.0)
    assert known.seconds is not None
    assert known.seconds == pytest.approx(800 / 10 * 0.02 / 2 * over_table)
    assert known.cost == pytest.approx(36.0 * 2 * (known.seconds + 60.0) / 3600)
    assert estimate.estimate(asked, texts, 100, 2, None, most=3).output_tokens == 300, "no row has more than it may"
    assert estimate.estimate(asked, texts, 2, 2, None, most=256).seconds == pytest.approx(16 * 0.01 / 2 * over_table)
    other = config(engine={"slots": 16})
    assert estimate.estimate(other, texts, 100, 1, None, most=256).seconds is None, "of other slots"


def test_an_estimate_by_a_run_that_left_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of policy `plain`: what the last one took for each token that went in."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    estimate.note_run(config(), SUMMARY)
    known = estimate.estimate(config(), ["x" * 16] * 5, 100, 2, None, most=256)
    assert known.seconds == pytest.approx(400 * 10 / 1000 / 2)
    assert (known.is_least, known.has_table) == (False, False)


def test_what_a_resumed_run_was_like_is_not_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for summary in ({**SUMMARY, "attempts": 2}, {**SUMMARY, "output_tokens": 0}):
        estimate.note_run(config(), summary)
    assert estimate.recall(config(), estimate.RUN) == {}
    assert estimate._path(config(), estimate.RUN).is_relative_to(cache_folder()), "where all that is kept lies"


def test_damaged_notes_are_no_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    estimate.note_steps(config(), 4, (1, 4), (0.1, 0.2))
    for text in ("{", "[]", "{}", '{"slots": 4, "rows": [1], "plain_seconds": []}'):
        estimate._path(config(), estimate.STEPS).write_text(text)
        assert estimate.estimate(config(), ["a"], 5, 1, None, 9).seconds is None


def test_a_user_without_a_home_has_no_notes_and_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers that run under whatever number the cluster chooses."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", homeless)
    estimate.note_steps(config(), 4, (1, 4), (0.1, 0.2))
    assert estimate.recall(config(), estimate.STEPS) == {}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "kept by the test")
    keep_token_to_ourselves()


def test_an_engine_with_a_step_table_notes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cmasd.engine import Engine
    from cmasd.pipeline.engine_thread import note_step_table

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = config(engine={"slots": 2, "max_new_tokens": 8, "max_source_tokens": 8})
    with torch.inference_mode():
        note_step_table(asked, Engine(load_pair(asked), asked))
    noted = estimate.recall(asked, estimate.STEPS)
    assert (noted["slots"], noted["rows"], len(noted["plain_seconds"])) == (2, [1, 2], 2)
    assert all(seconds > 0 for seconds in noted["plain_seconds"])


def test_tokens_are_counted_by_the_verifiers_own_tokenizer() -> None:
    tokenizer = models.load_tokenizer("en-de/verifier")
    texts = ["The train leaves at seven.", "Where did you put the keys?"]
    expected = sum(len(ids) for ids in tokenizer(texts)["input_ids"])
    assert estimate.tokens_in(config(), texts, BUNDLED) == expected
    assert estimate.tokens_in(config(input={"path": "in", "template": "{text}{text}"}), ["abcd"], None) == 2


def test_a_plan_with_problems_ends_as_the_run_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": "The train leaves at seven."}) + "\n")
    paths = [f"input.path={tmp_path}/in.jsonl", f"output.path={tmp_path}/run"]
    assert main(["plan", *paths, "drafter.kind=parallel", "actors.gpus_each=1"]) == 2
    said = capsys.readouterr()
    assert [line[:22] for line in said.err.splitlines()] == ["error: models.drafter:", "error: actors.gpus_eac"]
    assert "1 total, 0 done, 1 to do" in said.out
    assert main(["plan", *paths, "engine.slots=3"]) == 0
    said = capsys.readouterr()
    assert (said.err, "time           unknown: no step table" in said.out) == ("", True)


def test_a_router_must_be_one() -> None:
    """Where the policy asks it; a folder of another model is none."""
    stitched = {"policy": {"kind": "stitch"}, "stitch": {"router": str(BUNDLED)}}
    assert any(one.startswith(f"stitch.router: no router, got {BUNDLED}.") for one in problems(**stitched))
    assert not any("stitch.router" in one for one in problems(**{**stitched, "policy": {"kind": "fixed"}}))
    assert models_there.ROUTER == router_folder.MODEL_TYPE
