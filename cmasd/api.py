"""Decoding from Python, in this process and without Ray: texts in, texts with telemetry out.

    from cmasd import Decoder
    decoder = Decoder("en-de/verifier", "en-de/drafter")
    [row.text for row in decoder(["Good morning.", "How are you?"])]

Chat models also take conversations: `decoder([[{"role": "user", "content": "How are you?"}]])`.

The same engine as a run's: continuous batching, any policy and drafter; rows come back in the order they were given.
Nothing is written, and nothing is resumed: that is what `cmasd run` is for.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cmasd.config import from_dict
from cmasd.config.rules import check
from cmasd.core import Request, Result, RowError
from cmasd.engine import Engine, load_pair
from cmasd.engine.capacity import resolve


@dataclass(frozen=True)
class Decoded:
    """One row: a text and its telemetry, or why there is none."""

    text: str | None
    error: RowError | None
    result: Result | None
    """Tokens, counters and traces (`cmasd.core.Result`); None where there is an error."""


class Decoder:
    """A pair of models, loaded once."""

    def __init__(self, verifier: str, drafter: str | None = None, /, **sections: Mapping[str, Any]) -> None:
        """Bundled names, folders or hub names; `sections` as in a configuration file, e.g. `engine={"slots": 8}`.

        Without a drafter nothing is drafted, unless `drafter={"kind": "copy"}` or another that needs no model is
        asked for. Raises `ConfigError` and `ModelError`.
        """
        given: dict[str, Any] = {name: dict(keys) for name, keys in sections.items()}
        given["models"] = {"verifier": verifier, "drafter": drafter, **given.get("models", {})}
        unused = {"input": {"path": "-"}, "output": {"path": "-"}}  # every configuration names both
        config = from_dict({**unused, **given})
        if drafter is None and config.drafter.is_named and not config.drafter.free:
            config = replace(config, policy=replace(config.policy, kind="plain"))
        check(config)
        self._pair = load_pair(config)
        self.config = resolve(self._pair, config)
        """With the number of slots that fits."""
        self.engine = Engine(self._pair, self.config)
        """Its `stats` count everything decoded so far."""
        self.engine.experience.recall()

    def __call__(self, rows: Iterable[object]) -> list[Decoded]:
        """Decode texts, with `input.template` and `input.chat` as in a run, and lists of messages; one result for
        each, in order.
        """
        sources = self._pair.codec.encode(list(rows))
        requests = [
            Request(key, source, self._pair.max_new_tokens)
            for key, source in enumerate(sources)
            if not isinstance(source, RowError)
        ]
        results = {result.key: result for result in self.engine.decode(requests)}
        self.engine.experience.keep()
        texts = self._pair.codec.say(list(results.values()))
        said = dict(zip(results, texts, strict=True))
        return [
            Decoded(None, source, None) if isinstance(source, RowError) else _decoded(said[key], results[key])
            for key, source in enumerate(sources)
        ]


def _decoded(text: str | RowError, result: Result) -> Decoded:
    return Decoded(None, text, None) if isinstance(text, RowError) else Decoded(text, None, result)
