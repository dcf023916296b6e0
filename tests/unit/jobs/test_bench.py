"""`cmasd bench`: a table per batch size, and one JSON line that says it all."""

import json
from pathlib import Path

import pytest

from cmasd.config import load
from jobs.bench import HEADER, with_drafter
from jobs.main import main
from tests.unit.training.small import save_small_model, sentences

ENGINES = ["plain", "fixed", "paper", "paper_modulated", "survival", "hf_generate"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    save_small_model(folder / "verifier")
    save_small_model(folder / "drafter", seed=1)
    rows = [{"text": text} for text in ["bee " * 100, *sentences(4)]]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def overrides(folder: Path, *more: str) -> list[str]:
    models = [f"models.{role}={folder}/{role}/model" for role in ("verifier", "drafter")]
    places = [f"input.path={folder}/rows.jsonl", f"output.path={folder}/run", "models.device=cpu"]
    return [*models, *places, "engine.max_new_tokens=3", "engine.max_source_tokens=60", *more]


def test_last_line_is_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--batch-sizes", "1,3", "--threads", "1", *overrides(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    read = json.loads(lines[-1])
    assert [(row["batch_size"], row["engine"]) for row in read["results"]] == [(n, e) for n in (1, 3) for e in ENGINES]
    assert {row["rows"] for row in read["results"]} == {4}, "the text that is too long is left out"
    assert {row["dtype"] for row in read["results"]} == {"float32"}
    exact = [row for row in read["results"] if row["lossless"] == "exact"]
    assert {row["exact_match_to_plain"] for row in exact} == {1.0}
    assert ", 1 threads, torch " in read["machine"]
    assert lines[0] == f"4 rows; {read['machine']}"
    headers = [line for line in lines if line.startswith(HEADER[0])]
    assert len(headers) == 2
    assert not (folder / "run").exists(), "a bench writes no run"


def test_no_row_that_can_be_encoded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--quick", *overrides(folder, "engine.max_source_tokens=1")]) == 2
    assert "error: input.path: none of the first 5 rows can be encoded" in capsys.readouterr().err


@pytest.mark.parametrize("sizes", ["0", "1,-2", "a", "", "1,,2"])
def test_batch_sizes_are_checked(sizes: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", f"--batch-sizes={sizes}", "input.path=x"])
    assert ended.value.code == 2
    assert "must be whole numbers of at least 1" in capsys.readouterr().err


def test_a_plain_configuration_still_loads_its_drafter(folder: Path) -> None:
    plain = load([], overrides(folder, "policy.kind=plain"))
    assert with_drafter(plain).policy.kind == "fixed"
    alone = load([], [*overrides(folder, "policy.kind=plain"), "models.drafter=null"])
    assert with_drafter(alone) == alone
    drafting = load([], overrides(folder))
    assert with_drafter(drafting) == drafting
