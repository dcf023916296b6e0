"""Right answers, however they are written."""

import pytest

from cmasd.config.comparing import CompareConfig
from cmasd.evaluation.quality.answers import accuracy, is_right, marked

WORKED = "Natalia sold 48/2 = <<48/2=24>>24 clips in May, and 48+24 = 72 altogether.\n#### 72"


@pytest.mark.parametrize(
    ("output", "right"),
    [
        ("She sold 72 clips.", True),
        ("#### 72\nThat is the answer to question 9.", True),
        (r"so \boxed{72} clips, over 2 months", True),
        (r"\boxed{\$72.00}", True),
        ("72.0", True),
        ("48 + 24 = 72, so the answer is 27", False),
        ("#### 71, not 72", False),
        ("-72", False),
        ("from 9 to 80-72", True),
        ("a loss of -$72", False),
        ("none", False),
        ("", False),
    ],
)
def test_numbers_of_worked_solutions(output: str, right: bool) -> None:
    assert is_right(CompareConfig(answer="gsm8k"), output, WORKED) == right


@pytest.mark.parametrize(
    ("output", "answer"), [("It costs $1,250.50.", "#### 1250.5"), ("about 1,000 in all.", "1000"), (".5", "0.50")]
)
def test_one_number_in_several_forms(output: str, answer: str) -> None:
    assert is_right(CompareConfig(answer="gsm8k"), output, answer)


def test_an_answer_without_a_number_is_never_right() -> None:
    assert not is_right(CompareConfig(answer="gsm8k"), "none", "none")


@pytest.mark.parametrize(
    ("pattern", "output", "answer", "right"),
    [
        (r"answer: (\w)", "answer: A? No. answer: B.", "answer: B", True),
        (r"answer: (\w)", "answer: A", "B", False),
        (r"answer: (\w)", "answer: B", "B", True),
        (r"\d+", "12 and 13", "13", True),
        (r"answer: (\w)", "nothing", "B", False),
    ],
)
def test_patterns(pattern: str, output: str, answer: str, right: bool) -> None:
    assert is_right(CompareConfig(answer="regex", answer_pattern=pattern), output, answer) == right


def test_exact_is_all_but_the_blanks_around() -> None:
    config = CompareConfig(answer="exact")
    assert is_right(config, " Paris\n", "Paris")
    assert not is_right(config, "paris", "Paris")


def test_the_interval_is_wilsons() -> None:
    """8 of 10: 49.0 % to 94.3 % (Wilson 1927, as tabulated by Newcombe 1998)."""
    right = marked(CompareConfig(answer="exact"), ["a"] * 10, ["a"] * 8 + ["b"] * 2)
    found = accuracy(right, right)
    assert found["accuracy"] == 0.8
    assert (round(found["accuracy_low"], 3), round(found["accuracy_high"], 3)) == (0.490, 0.943)


def test_the_gap_is_between_rows_in_pairs() -> None:
    """Two of a hundred that one gets right and the other does not: known better than either share."""
    plain, other = [True] * 60 + [False] * 40, [True] * 58 + [False] * 42
    found = accuracy(other, plain)
    assert found["accuracy_gap"] == pytest.approx(-0.02)
    assert -0.06 < found["accuracy_gap_low"] < -0.02 < found["accuracy_gap_high"] <= 0
    assert found["accuracy_gap_high"] - found["accuracy_gap_low"] < found["accuracy_high"] - found["accuracy_low"]
    same = accuracy(plain, plain)
    assert (same["accuracy_gap"], same["accuracy_gap_low"], same["accuracy_gap_high"]) == (0, 0, 0)


@pytest.mark.parametrize(("right", "gap"), [(True, 1.0), (False, 0.0)])
def test_one_row_has_a_gap_without_an_interval(right: bool, gap: float) -> None:
    found = accuracy([right], [False])
    assert (found["accuracy_gap"], found["accuracy_gap_low"], found["accuracy_gap_high"]) == (gap, gap, gap)
