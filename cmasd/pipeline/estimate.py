"""How long a run will take and what it will cost, from what earlier starts on this machine left in the cache folder.

An actor notes what a plain iteration takes by rows, as the goodput policy measured it. A complete run notes how many
tokens came out for each that went in, how long its start took, what it took for each token that went in, and how many
times the table's seconds its decoding did: encoding, text and the last rows' empty slots are in no table. Notes are of
one verifier, precision, device, number of slots, share of the processors, machine and version. Imports neither torch
nor ray.
"""

import hashlib
import json
import math
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmasd import __version__
from cmasd.config.tree import Config
from cmasd.io.sound import Listener

STEPS, RUN = "steps", "run"
SAMPLE_ROWS = 200
PLACES_PER_SECOND, WINDOW_SECONDS, SPEECH_RATIO = 50, 30, 0.07
"""Of Whisper: what its encoder takes, its windows, and what is said for each place where no run has told."""
BYTES_PER_TOKEN = 4
"""Where the tokenizer has no tokenizer.json."""


@dataclass(frozen=True)
class Estimate:
    """Of the rows that are left."""

    input_tokens: float
    output_tokens: float
    ratio: float | None
    """Output tokens for an input token, of the last complete run; null: taken to be as many."""
    seconds: float | None
    """Decoding; null where no step table was measured, and no complete run either."""
    is_least: bool
    """Whether the seconds are of the table alone, which no run has corrected yet."""
    start_up_seconds: float | None
    """Of the last complete run."""
    actors: int
    cost: float | None
    """Of the whole job; null without a price, or without a time."""
    audio_seconds: float | None = None
    """Null where rows are texts."""
    has_table: bool = True
    """Else the seconds are those of the last complete run, token by token that goes in."""


def estimate(config: Config, texts: Sequence[Any], rows: int, actors: int, folder: Path | None, most: int) -> Estimate:
    """`texts` are a sample of the `rows`; `folder` is the verifier's; a row has `most` output tokens at most."""
    steps, before = recall(config, STEPS), recall(config, RUN)
    ratio, audio = before.get("output_tokens_per_input_token"), None
    if texts and not isinstance(texts[0], str):
        audio = seconds_of(config, texts) or 0.0
        each, usual = PLACES_PER_SECOND * audio, SPEECH_RATIO
        most *= max(1, math.ceil(audio / WINDOW_SECONDS))
    else:
        each, usual = tokens_in(config, texts, folder) / max(1, len(texts)), 1.0
    output = rows * min(each * (usual if ratio is None else ratio), most)
    seconds, level = table_seconds(steps, output, rows, actors), before.get("seconds_over_table")
    if seconds is not None and level is not None:
        seconds *= level
    has_table, each_place = seconds is not None, before.get("actor_seconds_per_input_token")
    if not has_table and each_place is not None:
        seconds, level = rows * each * each_place / actors, 1.0
    start_up = before.get("start_up_seconds")
    price, cost = config.cost.accelerator_per_hour, None
    if price is not None and seconds is not None:
        cost = price * actors * (seconds + (start_up or 0.0)) / 3600
    heard = None if audio is None else rows * audio
    return Estimate(rows * each, output, ratio, seconds, level is None, start_up, actors, cost, heard, has_table)


def table_seconds(steps: dict[str, Any], output_tokens: float, rows: int, actors: int) -> float | None:
    """Of plain decoding with all slots in use; null without a table."""
    try:
        live = max(1, min(int(steps["slots"]), -(-rows // actors)))
        return output_tokens * float(np.interp(live, steps["rows"], steps["plain_seconds"])) / (live * actors)
    except (KeyError, TypeError, ValueError):
        return None


def seconds_of(config: Config, recordings: Sequence[Any]) -> float | None:
    """Of a recording, on average over those of a sample whose headers tell; null where none does."""
    listen = Listener(config.input.path, config.speech.max_seconds)
    known = [seconds for one in recordings if (seconds := listen.seconds(one)) is not None]
    return min(sum(known) / len(known), config.speech.max_seconds) if known else None


def tokens_in(config: Config, texts: Sequence[str], folder: Path | None) -> int:
    """Of all texts, with the prompt around them."""
    prompts = [config.input.template.replace("{text}", text) if config.input.template else text for text in texts]
    file = folder / "tokenizer.json" if folder else None
    if file is not None and file.is_file():
        from tokenizers import Tokenizer

        with suppress(Exception):  # the tokenizer's own, of no public class
            counted = Tokenizer.from_file(str(file)).encode_batch_fast(prompts)
            most = config.engine.max_source_tokens
            return sum(len(one.ids) if most is None else min(len(one.ids), most) for one in counted)
    return sum(-(-len(prompt.encode(errors="replace")) // BYTES_PER_TOKEN) for prompt in prompts)


def note_steps(config: Config, slots: int, rows: Sequence[int], plain_seconds: Sequence[float]) -> None:
    """What a plain iteration takes on this machine, by live rows."""
    _keep(config, STEPS, {"slots": slots, "rows": list(rows), "plain_seconds": list(plain_seconds)})


def note_run(config: Config, summary: dict[str, Any]) -> None:
    """What a complete run was like; of one that was resumed, or had no tokens, nothing is learned."""
    if summary["attempts"] != 1 or not summary["input_tokens"] or not summary["output_tokens"]:
        return
    actor_seconds = 3600 * summary["actor_hours"]["decoding"]
    table = table_seconds(recall(config, STEPS), summary["output_tokens"], summary["rows"], actors=1)
    known = {
        "output_tokens_per_input_token": summary["output_tokens"] / summary["input_tokens"],
        "start_up_seconds": summary["seconds_by_phase"]["start_up"],
        "seconds_over_table": actor_seconds / table if table else None,
        "actor_seconds_per_input_token": actor_seconds / summary["input_tokens"],
    }
    _keep(config, RUN, known)


def recall(config: Config, what: str) -> dict[str, Any]:
    """A note; empty where there is none."""
    try:
        value = json.loads(_path(config, what).read_text())
    except (OSError, ValueError, RuntimeError):
        return {}
    return value if isinstance(value, dict) else {}


def _keep(config: Config, what: str, value: dict[str, Any]) -> None:
    """Whole or not at all; a folder that cannot be written to, or that nobody has, costs an estimate."""
    with suppress(OSError, RuntimeError):
        path = _path(config, what)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_text(json.dumps(value))
        fresh.replace(path)


def _path(config: Config, what: str) -> Path:
    """Raises RuntimeError for a user without a home."""
    models, actors = config.models, config.actors
    about = [models.verifier, models.dtype, models.device, config.engine.slots, actors.cpus_each, actors.gpus_each]
    text = json.dumps([*about, platform.node(), __version__])
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cmasd" / "estimates"
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}-{what}.json"
