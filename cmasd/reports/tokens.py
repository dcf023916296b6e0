"""Sample rows split into their tokens: the text of each, who wrote it, and how sure the drafter was.

The verifier's own tokenizer says where a token's text begins. Where it cannot be loaded, rows are shown whole.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cmasd.config.tree import Config
from cmasd.errors import CmasdError
from cmasd.reports.palette import level_of
from cmasd.signals import FROM_SMALL, FROM_VERIFIER
from cmasd.telemetry.acceptance import SOURCES
from cmasd.telemetry.schema import SOURCE_FIELD, output_schema

MOST_TOKENS = 300
"""Of a row, that are shown."""
UNSURE = 0.5
"""Probability under which a word is marked."""
MOST_CHARACTERS = 600
"""Of a text, that are shown."""
_OWN_COLUMNS = frozenset(output_schema("token", teacher_top_k=1, keeps_source=True).names)
_BROKEN = "\ufffd"
Speaker = Literal["verifier", "draft", "small model"]
SPEAKERS: dict[int, Speaker] = {FROM_VERIFIER: "verifier", FROM_SMALL: "small model"}
"""By `token_source`; all others are drafts."""
Splitter = Callable[[Sequence[int]], list[str]]


@dataclass(frozen=True)
class Token:
    """One output token."""

    text: str
    """Empty for special tokens, and for the first of several tokens that make one character."""
    speaker: Speaker
    """The verifier itself, an accepted draft, or the small model that policy `stitch` lets speak unchecked."""
    proposer: str
    """The same, of a draft who proposed it."""
    position: int | None
    """Of a draft, from 1; null where nothing was drafted, or an earlier version did not record it."""
    confidence: float | None
    """Null where nothing was drafted."""
    level: int | None
    """The tint of that confidence."""
    gap_nats: float | None
    """Null where the verifier has not seen the token."""
    tau_nats: float
    probability: float | None = None
    """That the verifier gave it; null where it has not seen it."""
    is_unsure: bool = False
    """Whether the verifier gave its word less than `UNSURE`: the product over the word's tokens."""


@dataclass(frozen=True)
class SampleRow:
    """One row as it is shown."""

    identity: str
    why: str
    """Chosen."""
    source: str | None
    """Null where it cannot be had."""
    output: str
    kept: list[tuple[str, str]]
    """Other kept input columns by name."""
    drafted: int
    accepted: int
    iterations: int
    small: int
    """Tokens that the small model said."""
    switches: int
    length: int
    """Output tokens."""
    tokens: list[Token]
    """The first of them; empty where the telemetry or the tokenizer cannot tell."""

    @property
    def unsure(self) -> int:
        """Tokens of words that are marked."""
        return sum(token.is_unsure for token in self.tokens)


def sample_row(
    why: str, row: dict[str, Any], split: Splitter | None, source: str | None = None, text_column: str = "text"
) -> SampleRow:
    """From a row of the output; `source` is shown unless the row holds it: as `text_column`, or by
    `telemetry.keep_source`.
    """
    kept = {name: value for name, value in row.items() if name not in _OWN_COLUMNS}
    source = kept.pop(text_column, row.get(SOURCE_FIELD.name) or source)
    return SampleRow(
        identity=str(row["id"]),
        why=why,
        source=None if source is None else _short(str(source)),
        output=_short(row["output"] or ""),
        kept=[(name, _short(str(value))) for name, value in kept.items()],
        drafted=row["num_drafted_tokens"],
        accepted=row["num_accepted_tokens"],
        iterations=row["num_iterations"],
        small=row.get("num_small_tokens", 0),
        switches=row.get("num_switches", 0),
        length=row["num_output_tokens"],
        tokens=_tokens(row, split) if split and "token_id" in row else [],
    )


def _short(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " ..."


def _tokens(row: dict[str, Any], split: Splitter) -> list[Token]:
    texts = split(row["token_id"][:MOST_TOKENS])
    columns = (row[f"token_{name}"] for name in ("source", "confidence", "gap_nats", "tau"))
    positions = row.get("token_draft_position") or [0] * len(texts)
    logprobs = (row.get("token_verifier_logprob") or [math.nan] * len(texts))[: len(texts)]
    return [
        Token(
            text=text,
            speaker=SPEAKERS.get(source, "draft"),
            proposer=SPEAKERS.get(source, SOURCES.get(source, "draft")),
            position=position or None,
            confidence=None if math.isnan(confidence) else confidence,
            level=None if math.isnan(confidence) else level_of(confidence),
            gap_nats=None if math.isnan(gap) else gap,
            tau_nats=tau,
            probability=None if math.isnan(logprob) else math.exp(logprob),
            is_unsure=_is_of_a_word(text) and math.exp(whole) < UNSURE,
        )
        for (text, source, confidence, gap, tau, position), logprob, whole in zip(
            zip(texts, *columns, positions, strict=False), logprobs, by_word(texts, logprobs), strict=True
        )
    ]


def _is_of_a_word(text: str) -> bool:
    return any(letter.isalnum() for letter in text)


def by_word(texts: Sequence[str], logprobs: Sequence[float]) -> list[float]:
    """For each token the log-probability of its whole word; what nobody saw counts as sure. A space begins a word, and
    a mark between words stands alone.
    """
    numbers, word = [], 0
    for text in texts:
        word += text[:1].isspace() or not _is_of_a_word(text)
        numbers.append(word)
    sums = [0.0] * (word + 1)
    for number, text, logprob in zip(numbers, texts, logprobs, strict=True):
        sums[number] += logprob if text and not math.isnan(logprob) else 0.0
    return [sums[number] for number in numbers]


def splitter(config: Config) -> Splitter | str:
    """By the verifier's tokenizer, or why that cannot be had."""
    from cmasd.checkpoints.by_name import load_tokenizer  # loads torch, which other runs' reports do without

    try:
        loaded: Any = load_tokenizer(config.models.verifier, trust_remote_code=config.models.trust_remote_code)
    except CmasdError as error:
        return str(error)

    def decode(prefixes: Sequence[Sequence[int]]) -> list[str]:
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return list(loaded.batch_decode(prefixes, **options))

    return lambda ids: pieces(ids, decode)


def pieces(ids: Sequence[int], decode: Callable[[Sequence[Sequence[int]]], list[str]]) -> list[str]:
    """What each token adds to the text; a character spread over tokens stands at its last."""
    texts, before = [], ""
    for text in decode([ids[: end + 1] for end in range(len(ids))]):
        is_whole = not text.endswith(_BROKEN) and text.startswith(before)
        texts.append(text[len(before) :] if is_whole else "")
        before = text if is_whole else before
    return texts
