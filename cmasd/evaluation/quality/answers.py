"""Whether an output says the right answer, for tasks where that can be told.

`gsm8k` (Cobbe et al. 2021): numbers are equal, however they are written; the answer is the number behind `####`, else
that in the last box, else the last number of the text. What is not found is wrong.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from scipy import stats

from cmasd.config.comparing import CompareConfig
from cmasd.evaluation.speed.timing import bootstrapped

NUMBER = r"(?:(?<![\w)])[-+])?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
MARKED = re.compile(rf"####\s*({NUMBER})")
BOXED = re.compile(rf"\\boxed\{{\s*(?:\\\$)?\s*({NUMBER})")
ANY = re.compile(NUMBER)


def number_said(text: str) -> Decimal | None:
    """The answer of a worked solution; None where there is none."""
    for pattern in (MARKED, BOXED, ANY):
        if found := pattern.findall(text):
            return Decimal(found[-1].replace(",", "").replace("$", ""))
    return None


def found_last(pattern: str, text: str) -> str | None:
    """The first group of the last match, or all of it; None where nothing matches."""
    matches = list(re.finditer(pattern, text))
    if not matches:
        return None
    said: str | None = matches[-1].group(1 if matches[-1].re.groups else 0)
    return said if said is None else said.strip()


def is_right(config: CompareConfig, output: str, answer: str) -> bool:
    """By `compare.answer`; with `regex` an answer in which nothing matches stands for itself."""
    if config.answer == "gsm8k":
        expected = number_said(answer)
        return expected is not None and number_said(output) == expected
    if config.answer == "regex":
        wanted = found_last(config.answer_pattern, answer)
        return found_last(config.answer_pattern, output) == (answer.strip() if wanted is None else wanted)
    return output.strip() == answer.strip()


def marked(config: CompareConfig, outputs: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Whether each is right."""
    return [is_right(config, *both) for both in zip(outputs, answers, strict=True)]


def accuracy(right: Sequence[bool], plain: Sequence[bool]) -> dict[str, Any]:
    """Share of right outputs with its 95 % interval (Wilson), and by how much that is more than of `plain`, with the
    interval of the difference over rows (bootstrap): the same questions are hard for everybody, so it is the narrower.
    """
    gap = bootstrapped((np.array(right, dtype=float) - np.array(plain, dtype=float),), np.mean)
    found = {"accuracy_gap": gap.value, "accuracy_gap_low": gap.low, "accuracy_gap_high": gap.high}
    return {**with_interval(sum(right), len(right)), **found}


def with_interval(right: int, rows: int) -> dict[str, float]:
    """A share with its 95 % interval (Wilson)."""
    interval = stats.binomtest(right, rows).proportion_ci(0.95, "wilson")
    return {"accuracy": right / rows, "accuracy_low": float(interval.low), "accuracy_high": float(interval.high)}
