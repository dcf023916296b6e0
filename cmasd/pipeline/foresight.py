"""What a run would stumble over, found by `cmasd plan` beforehand: models, GPUs, memory. Imports neither torch nor ray.

A problem is named only where it is certain, in the words of the run. Where Ray is elsewhere (`RAY_ADDRESS`), so are its
GPUs and its memory, and nothing is said of them.
"""

import math
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cmasd.config.tree import KEPT_PLACES, Config
from cmasd.errors import ConfigError
from cmasd.io.earlier import earlier_run
from cmasd.io.memories import memories_before
from cmasd.io.provenance import provenance
from cmasd.pipeline.address import named
from cmasd.pipeline.engine_thread import engines_beside
from cmasd.pipeline.models_there import ROUTER, Found, find, model_problems
from cmasd.pipeline.speech_there import speech_problems

ITEM_BYTES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "int8": 4}
"""Of keys and values; int8 is of weights alone."""
INT4_BITS = 4.5
"""Of a weight, with its share of a scale."""
WIDENED = ("marian", "bart", "mbart", "pegasus", "m2m_100", "whisper")
"""Families (`model_type`) whose weights are float32 on a CPU whatever was stored; others are kept in their 16 bits."""
DEFAULT_NEW_TOKENS = 256
LAYERS = ("decoder_layers", "num_decoder_layers", "num_hidden_layers", "num_layers", "n_layer")
HEADS = ("decoder_attention_heads", "num_attention_heads", "num_heads", "n_head")
WIDTHS = ("d_model", "hidden_size", "n_embd")


@dataclass(frozen=True)
class Outlook:
    """Of a run that is still to be done."""

    verifier: Found
    problems: list[str]
    """What would end it, as the run would say it."""
    remarks: list[str] = field(default_factory=list)
    """What could not be told from here."""


def look_ahead(config: Config) -> Outlook:
    """Everything that can be told without loading a model."""
    pickles = config.models.allow_pickle
    verifier = find(config.models.verifier, pickles)
    drafts = config.policy.kind != "plain"
    drafter = find(config.models.drafter or "", pickles) if drafts and config.drafter.is_named else None
    problems = model_problems(config, verifier, drafter) + speech_problems(config, verifier)
    remarks = [
        f"{found.name}: not on this machine, so it would be fetched from the hub."
        for found in (verifier, drafter)
        if found is not None and found.folder is None and found.problem is None
    ]
    calibration = config.confidence.calibration
    if calibration is not None and not Path(calibration).is_file():
        problems.append(f"confidence.calibration: no such file, got {calibration}. cmasd calibrate RUN writes one.")
    router = config.stitch.router if config.policy.kind == "stitch" else None
    if router is not None and find(router).config.get("model_type") != ROUTER:
        problems.append(f"stitch.router: no router, got {router}. cmasd train with kind: router writes one.")
    try:
        earlier_run(config)
        memories_before(config)
    except ConfigError as error:
        problems.append(str(error))
    if (address := named()) is not None:
        remarks.append(f"RAY_ADDRESS: processors, GPUs and memory are those of {address}, and were not looked at.")
        return Outlook(verifier, problems, remarks)
    gpus = len(visible_gpus())
    problems += machine_problems(config, gpus)
    takes_gpu = bool(gpus) and config.actors.gpus_each != 0 and config.models.device != "cpu"
    models = [found for found in (verifier, drafter) if found is not None]
    kind = "cuda" if takes_gpu else "cpu"
    problems += memory_problems(config, models, kind)
    remarks += memory_remarks(config, models, kind)
    return Outlook(verifier, problems, remarks)


def machine_problems(config: Config, gpus: int) -> list[str]:
    """Of actors that ask for more than this machine has."""
    actors, problems = config.actors, []
    least = actors.count or actors.min
    have = {"cpus_each": ("CPU", os.cpu_count() or 1), "gpus_each": ("GPU", gpus)}
    for key, (name, there) in have.items():
        each = getattr(actors, key) or 0
        if each * least > there:
            problems.append(
                f"actors.{key}: {least} actor(s) of {each:g} {name} each need {each * least:g}, "
                f"this machine has {there:g}. Lower actors.{key} or actors.count."
            )
    if config.models.device == "cuda" and not gpus:
        problems.append("models.device: is cuda, but this machine has no GPU. Use models.device=auto.")
    return problems


def visible_gpus() -> list[str]:
    """Those that Ray would count."""
    gpus = [str(name) for name in provenance()["hardware"]["gpus"]]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        gpus if visible is None else gpus[: len([one for one in visible.split(",") if one.strip() not in ("", "-1")])]
    )


def memory_problems(config: Config, models: list[Found], kind: str) -> list[str]:
    """By what is certain to be asked for: weights, two rows of keys and values for each slot, and one long row."""
    need = _memory(config, models, kind)
    slots, free = config.engine.slots or 1, need.free
    least = need.weights + slots * need.slot + need.long_row
    if free is None or least <= free:
        return []
    fitting = max(0, int((free - need.weights - need.long_row) // need.slot)) if need.slot else 0
    expected = f"at most {fitting}" if fitting else "more memory, because not even one slot fits"
    long_row = f", and {size(need.long_row)} for a row as long as allowed" * bool(need.long_row)
    return [
        f"engine.slots: does not fit into memory, got {slots} ({size(least)} or more: {size(need.weights)} of weights, "
        f"and {size(need.slot)} a slot{long_row}; {size(free)} are free for each of "
        f"{engines_beside(config.actors, kind)} actor(s)); expected {expected}. "
        "Lower it, engine.max_source_tokens or engine.max_new_tokens."
    ]


def memory_remarks(config: Config, models: list[Found], kind: str) -> list[str]:
    """Where rows as long as allowed do not fit into all slots."""
    need, slots = _memory(config, models, kind), config.engine.slots
    if need.free is None or not (slots and need.long_row) or config.engine.cache_tokens is not None:
        return []
    left = need.free - need.weights - slots * need.slot
    if not need.long_row <= left < slots * need.long_row:
        return []
    return [
        f"engine.cache_tokens: {slots} rows as long as allowed do not fit into memory together; rows of up to "
        f"{left / need.token:,.0f} tokens in all do, and others wait."
    ]


class _Memory(NamedTuple):
    """Bytes."""

    weights: int
    slot: int
    long_row: int
    """Of the longest row, beyond what its slot has; 0 where slots are allocated whole."""
    token: int
    free: float | None
    """For one actor; None where that cannot be read."""


def _memory(config: Config, models: list[Found], kind: str) -> _Memory:
    weights = sum(weight_bytes(config, found, kind) for found in models)
    speaking = [found for found in models if not found.is_parallel]
    slot = 2 * sum(row_bytes(config, found, kind) for found in speaking)
    whole = sum(place_bytes(config, found, kind) * sum(row_places(config, found)) for found in speaking)
    token = sum(place_bytes(config, found, kind) for found in speaking)
    free = free_bytes() if kind == "cpu" else gpu_free_bytes()
    each = None if free is None else free / engines_beside(config.actors, kind)
    return _Memory(weights, slot, whole if slot < 2 * whole else 0, token, each)


def weight_bytes(config: Config, found: Found, kind: str) -> int:
    """In memory: with `auto` as stored, but on a CPU float32 in families that are widened."""
    stored, models = stored_bytes(found), config.models
    each: float = item_bytes(config, found, kind)
    if kind == "cpu" and models.dtype in ("auto", "float32", "int8") and found.config.get("model_type") not in WIDENED:
        least = "int8" if config.policy.kind == "stitch" else "auto"  # whose small model nobody checks
        drafts_in_int8 = found.name == models.drafter and models.drafter_dtype in ("int8", least)
        each = 1 if models.dtype == "int8" or drafts_in_int8 else stored
        if found.name == models.drafter and models.drafter_dtype == "int4":
            each = INT4_BITS / 8
    return int(found.weight_bytes * each / stored)


def stored_bytes(found: Found) -> int:
    """Of one weight, in the file."""
    return ITEM_BYTES.get(str(found.config.get("dtype") or found.config.get("torch_dtype")), 4)


def item_bytes(config: Config, found: Found, kind: str) -> int:
    """Of one number, in memory."""
    if config.models.dtype == "auto":
        return 4 if kind == "cpu" else stored_bytes(found)
    return ITEM_BYTES[config.models.dtype]


def row_bytes(config: Config, found: Found, kind: str) -> int:
    """Keys and values of one row that every slot has; 0 where `config.json` does not tell by the usual names."""
    places = row_places(config, found)
    kept = places if kind != "cpu" else tuple(min(count, KEPT_PLACES) for count in places)
    return place_bytes(config, found, kind) * sum(kept)


def place_bytes(config: Config, found: Found, kind: str) -> int:
    """Keys and values of one token."""
    layers, heads, width = (first(found.config, names) for names in (LAYERS, HEADS, WIDTHS))
    if not (layers and heads and width):
        return 0
    head_width = first(found.config, ("head_dim", "d_kv")) or width // heads
    kept = first(found.config, ("num_key_value_heads",)) or heads
    each = item_bytes(config, found, kind) if config.models.cache_dtype == "auto" else 2
    return layers * 2 * kept * head_width * each


def row_places(config: Config, found: Found) -> tuple[int, int]:
    """Of the longest row: those of its decoder, and of its source where that is encoded."""
    fresh, positions = new_tokens(config, found), first(found.config, ("max_position_embeddings", "n_positions"))
    if heard := first(found.config, ("max_source_positions",)):
        return min(fresh, first(found.config, ("max_target_positions",))), heard
    source = config.engine.max_source_tokens or positions
    positions = positions or source + fresh
    if found.config.get("is_encoder_decoder"):
        return min(fresh, positions), min(source, positions)
    return min(source + fresh, positions), 0


def new_tokens(config: Config, found: Found) -> int:
    """Most that a row may have."""
    own = found.read("generation_config.json")
    known = first(own, ("max_new_tokens",)) or (
        first(own, ("max_length",)) if found.config.get("is_encoder_decoder") else 0
    )
    return config.engine.max_new_tokens or known or DEFAULT_NEW_TOKENS


def first(tree: dict[str, Any], names: tuple[str, ...]) -> int:
    """The first of these keys that holds a number; 0 where none does."""
    return next((tree[name] for name in names if isinstance(tree.get(name), int)), 0)


def free_bytes(root: Path = Path("/")) -> int | None:
    """What the machine, or the container that this is in, has left; null where that cannot be read."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        left = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        groups = root / "sys/fs/cgroup"
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
        ):
            if (groups / limit).is_file() and (text := (groups / limit).read_text().strip()) != "max":
                left.append(
                    max(0, int(text) - int((groups / used).read_text()) + _reclaimable((groups / limit).parent))
                )
        return min(left, default=None)
    except (OSError, ValueError, IndexError):
        return None


def gpu_free_bytes() -> int | None:
    """Of the GPU with the most; null where that cannot be read."""
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        return max(2**20 * int(line) for line in said.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _reclaimable(group: Path) -> int:
    """Pages of files, which count as used but are given up when wanted."""
    lines = (group / "memory.stat").read_text().splitlines()
    return next(
        (int(line.split()[1]) for line in lines if line.split()[0] in ("total_inactive_file", "inactive_file")), 0
    )


def size(count: float) -> str:
    """1.23 GB."""
    unit = min(4, int(math.log10(max(count, 1)) // 3))
    return f"{count / 1000**unit:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[unit]}"
