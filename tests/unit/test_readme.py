"""The README keeps its promises: short, and every command, verb and path in it exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAX_LINES = 200
INSTALL = "python3 -m venv .venv && .venv/bin/pip install -q -c infra/constraints.txt -e "
RUN_COMMAND = INSTALL + ". && .venv/bin/cmasd run configs/demo.yaml"
TEST_COMMAND = INSTALL + "'.[test]' && PATH=\"$PWD/.venv/bin:$PATH\" bash .ci/check"


def paths_of_the_repository() -> list[str]:
    """Link targets, and words that start with one of the repository's folders; `*` is a pattern."""
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)\s#]+)", README)
    words = re.findall(r"(?<![\w/.\-])((?:cmasd|jobs|configs|tests|infra|docs|\.ci)/[\w.*/\-]*)", README)
    return sorted({word.rstrip(".,:") for word in [*links, *words]})


def code_in_readme() -> str:
    """Fenced blocks and inline code; prose such as "cmasd is" is left out."""
    fence = re.compile(r"^```.*?^```", flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*fence.findall(README), *re.findall(r"`([^`\n]+)`", fence.sub("", README))])


def verbs() -> list[str]:
    return sorted(set(re.findall(r"(?:(?<!from )\bcmasd|-m jobs) ([a-z]+)\b", code_in_readme())))


def test_is_short() -> None:
    assert len(README.splitlines()) <= MAX_LINES


@pytest.mark.parametrize("command", [RUN_COMMAND, TEST_COMMAND], ids=["run", "test"])
def test_holds_the_command_on_a_line_of_its_own(command: str) -> None:
    assert command in [line.strip() for line in README.splitlines()]


def test_continuous_integration_runs_the_same_command() -> None:
    assert TEST_COMMAND in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_every_path_exists() -> None:
    assert paths_of_the_repository(), "the README names no path: the pattern is out of date"
    missing = [path for path in paths_of_the_repository() if not any(ROOT.glob(path.rstrip("/")))]
    assert missing == []


def test_every_verb_exists() -> None:
    """One file per verb in `jobs`."""
    assert "run" in verbs()
    assert [verb for verb in verbs() if not (ROOT / "jobs" / f"{verb}.py").is_file()] == []
