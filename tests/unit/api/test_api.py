"""The Python interface: rows in order, results of a run's engine, errors row by row."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import cmasd
from cmasd import Decoded, Decoder
from cmasd.errors import ConfigError
from tests.unit.engine.checkpoints import save_checkpoint
from tests.unit.training.small import save_small_model, sentences

ROWS = sentences(9, seed=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_small_model(tmp_path_factory.mktemp("model")))


def texts(rows: list[Decoded]) -> list[str | None]:
    return [row.text for row in rows]


def test_rows_come_back_in_order_and_drafts_change_nothing(model: str) -> None:
    plain = Decoder(model, engine={"slots": 2, "max_new_tokens": 12})
    drafting = Decoder(
        model,
        model,
        engine={"slots": 3, "max_new_tokens": 12},
        policy={"kind": "fixed"},
        drafter={"max_draft_tokens": 2},
    )
    assert plain.config.policy.kind == "plain", "without a drafter nothing is drafted"
    assert texts(plain(ROWS)) == texts(drafting(ROWS))
    assert texts(plain(reversed(ROWS))) == texts(plain(ROWS))[::-1]
    assert plain([]) == []
    [row] = drafting(ROWS[:1])
    assert row.result is not None
    assert row.result.num_accepted_tokens > 0
    assert drafting.engine.stats.drafted_tokens > 0


def test_a_drafter_that_needs_no_model(model: str) -> None:
    lookup = Decoder(
        model, drafter={"kind": "lookup"}, policy={"kind": "fixed"}, engine={"slots": 2, "max_new_tokens": 12}
    )
    assert texts(lookup(ROWS)) == texts(Decoder(model, engine={"slots": 2, "max_new_tokens": 12})(ROWS))


def test_conversations_go_through_the_chat_template(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "llama", "llama", {"eos_token_id": 2, "max_new_tokens": 6})
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ '<s1> ' + m.content + ' ' }}{% endfor %}{{ '<s0>' }}"
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    decoder = Decoder(str(folder), engine={"slots": 2})
    turns = [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6"}]
    rows = decoder([[*turns, turns[0]], "<s1> w5 <s1> w6 <s1> w5 <s0>", turns])
    assert texts(rows)[0] == texts(rows)[1] is not None
    assert str(rows[2].error) == "encode: message 2 is the last and of role assistant; expected a question"
    said = Decoder(str(folder), engine={"slots": 2}, input={"chat": True, "system": "w6"})(["w5"])
    assert texts(said) == texts(decoder(["<s1> w6 <s1> w5 <s0>"]))


def test_a_bad_row_is_an_error_of_its_own(model: str) -> None:
    first, second, third = Decoder(model, engine={"slots": 2, "max_new_tokens": 4})(["ah", None, "bee"])
    assert (first.error, third.error) == (None, None)
    assert second.text is None
    assert second.error is not None
    assert second.error.stage == "encode"


def test_a_wrong_setting_is_told_by_name(model: str) -> None:
    with pytest.raises(ConfigError, match=r"engine\.slots"):
        Decoder(model, engine={"slots": 0})


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, cmasd; assert 'torch' not in sys.modules; cmasd.Decoder; assert 'ray' not in sys.modules"
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="has no attribute 'Encoder'"):
        cmasd.Encoder  # noqa: B018
