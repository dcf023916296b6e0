"""Rows of a run decoded again plainly, and what differs (`cmasd.evaluation.quality.audit`).

Rows are spread evenly over what the run has written, failed ones left out. Tokens are compared where the run kept them
(`telemetry.level: token`); else texts are, and rows whose texts differ are decoded once more as the run decoded them.
Source texts are read from the input again, as `cmasd report` does.
"""

from dataclasses import dataclass
from typing import Any

from cmasd.config import from_dict
from cmasd.config.tree import Config
from cmasd.core import Request, RowError
from cmasd.engine import Pair, load_pair
from cmasd.engine.capacity import resolve
from cmasd.errors import ConfigError, InputError
from cmasd.evaluation.quality.audit import ALGORITHMIC, Divergence, decode_plainly, divergences
from cmasd.evaluation.speed.request_decoder import EngineDecoder
from cmasd.io.run_folder import RunFolder
from cmasd.io.status import status
from cmasd.reports.picks import spread_rows
from cmasd.reports.sources import source_texts


@dataclass(frozen=True)
class Audited:
    """What came of it."""

    rows: int
    """Compared."""
    by_tokens: bool
    """Whether the run kept its tokens."""
    found: list[tuple[str, Divergence, str | None, str | None]]
    """Identity of the row, where it differs, and the texts of plain's token and of the row's (None: it had ended)."""

    @property
    def algorithmic(self) -> int:
        """Rows that rounding cannot explain."""
        return sum(one.cause == ALGORITHMIC for _, one, _, _ in self.found)

    @property
    def near_ties(self) -> int:
        """Rows in which two logits nearly tied."""
        return len(self.found) - self.algorithmic

    @property
    def sentence(self) -> str:
        """The result in a line."""
        return f"{self.rows} rows, {self.algorithmic} algorithmic differences, {self.near_ties} near-ties"


def audit(address: str, rows: int) -> Audited:
    """At most so many rows of a run, finished or not.

    Raises `ConfigError` for a run that promises nothing token by token, `InputError` where its input is gone.
    """
    folder = RunFolder(address)
    done, manifest = int(status(address)["rows_done"]), folder.manifest()
    assert manifest is not None, "a run folder has one"
    config = from_dict(manifest["config"])
    if config.lossless != "exact":
        raise ConfigError(
            f"verification: the run is {config.lossless}, expected an exact one, which says what plain decoding does."
        )
    columns = ["id", "output", *(["token_id"] if config.telemetry.level == "token" else [])]
    kept = spread_rows(folder, columns, rows, done)
    texts, why = source_texts(config, manifest, address, [(place, str(row["id"])) for place, row in kept.items()])
    kept = {place: row for place, row in kept.items() if place in texts}
    if not kept:
        raise InputError(f"{address}: no row can be decoded again. {why or 'None has been decoded without an error.'}")
    return compare(load_pair(config), config, [texts[place] for place in kept], list(kept.values()))


def compare(pair: Pair, config: Config, texts: list[str], rows: list[dict[str, Any]]) -> Audited:
    """Rows as a run wrote them, against plain decoding of their sources."""
    encoded = pair.codec.encode(list(texts))
    requests = [
        Request(key, source, pair.max_new_tokens)
        for key, source in enumerate(encoded)
        if not isinstance(source, RowError)
    ]
    plain = decode_plainly(pair, config, requests)
    outputs = {one.key: rows[one.key].get("token_id") for one in requests}
    by_tokens = all(tokens is not None for tokens in outputs.values())
    if not by_tokens:
        said = dict(zip(plain, pair.codec.decode(list(plain.values())), strict=True))
        doubtful = [one for one in requests if said[one.key] != rows[one.key]["output"]]
        again = EngineDecoder(pair, resolve(pair, config)).decode(doubtful) if doubtful else {}
        outputs = {one.key: again.get(one.key, plain[one.key]) for one in requests}
    found = divergences(pair, config, requests, plain, {key: list(tokens or ()) for key, tokens in outputs.items()})
    return Audited(
        len(requests),
        by_tokens,
        [(str(rows[one.key]["id"]), one, _text(pair, one.plain_token), _text(pair, one.token)) for one in found],
    )


def _text(pair: Pair, token: int | None) -> str | None:
    return None if token is None else str(pair.codec.decode([[token]])[0])
