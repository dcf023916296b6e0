"""How many rows fit into memory, counted before anything is allocated.

`engine.slots` null is turned into a number here, and a number that cannot fit is refused here: otherwise it would be
the operating system that ends the job, hours later. A slot costs two rows of every buffer, its own and a staged one,
besides the logits of its window and what encoding its source needs for a moment. Where long rows are possible, and not
in every slot, `engine.cache_tokens` is given the tokens that fit (`need.py`).
The count is of the tensors that the engine asks for; `SAFE_SHARE` leaves the rest of the memory to everything else.

Shapes: T window, V vocabulary, S source length.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from cmasd.checkpoints.by_name import Model
from cmasd.config.tree import KEPT_PLACES, MOST_SLOTS, Config
from cmasd.engine.need import Need
from cmasd.engine.pair import Pair
from cmasd.engine.slots import LEAST_STAGED, SlotShape, SlotState
from cmasd.engine.tail import most_drafted
from cmasd.errors import ConfigError
from cmasd.kernels import Bits
from cmasd.models.families import family_of, output_layer
from cmasd.models.packed import bytes_to_pack, linears, outputs_of
from cmasd.models.parallel_network import ParallelNetwork
from cmasd.runner.cache import Geometry, SlotCache, SourceCache
from cmasd.runner.decoder_only import PREFILL_TOKENS
from cmasd.runner.graphs import uses_graphs
from cmasd.runner.load import measure

SAFE_SHARE = {"cpu": 0.5, "cuda": 0.8}
"""Of the free memory, for `auto`. A host's memory is also that of other processes; a GPU is mostly ours alone."""
OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "Cannot allocate memory", "out of memory")

Row = TypeVar("Row")

log = logging.getLogger(__name__)


def resolve(pair: Pair, config: Config, engines: int = 1) -> Config:
    """The configuration with a number of slots, and of tokens, that fits; raises `ConfigError` when there is none.

    `engines` are built alike and share the device's memory.
    """
    need, free = need_of(pair, config), free_bytes(pair.device) // engines
    asked, tokens, safe = config.engine.slots, config.engine.cache_tokens, SAFE_SHARE[pair.device.type] * free
    if asked is not None and need.of(asked) <= free:
        return config
    if asked is not None and need.least(asked) > free:
        raise ConfigError(f"engine.slots: {_refusal(asked, need, free)}")
    slots = choose_slots(need, pair.device.type, free) if asked is None else asked
    if tokens is None:
        tokens = need.tokens(slots, safe)
    elif need.of(slots) > free:
        _check_tokens(tokens, slots, need, free)
    told = {"event": "engine.slots", "slots": slots, "slot_bytes": need.slot_bytes, "free_bytes": free}
    log.info("%s", told if tokens is None else {**told, "cache_tokens": tokens, "token_bytes": need.token_bytes})
    return replace(config, engine=replace(config.engine, slots=slots, cache_tokens=tokens))


def _check_tokens(tokens: int, slots: int, need: Need, free: int) -> None:
    if need.shared(slots, tokens) > free:
        most = need.tokens(slots, free)
        raise ConfigError(
            f"engine.cache_tokens: do not fit into memory, got {tokens} ({_size(need.shared(slots, tokens))}; "
            f"{_size(free)} are free); expected at most {most}. Lower it, or leave it to null."
        )


def choose_slots(need: Need, kind: str, free_bytes: int) -> int:
    """As many rows as are worth having in `free_bytes` of this kind of device; raises `ConfigError` when none fits."""
    fitting = need.most_sharing(SAFE_SHARE[kind] * free_bytes)
    if fitting == 0:
        raise ConfigError(f"engine.slots: {_refusal(1, need, free_bytes)}")
    return min(fitting, MOST_SLOTS[kind])


def fits(pair: Pair, config: Config, slots: int, free_bytes: int) -> bool:
    """Whether an engine of `slots` rows can be had in `free_bytes`."""
    return need_of(pair, config).least(slots) <= free_bytes


def _refusal(slots: int, need: Need, free: int) -> str:
    most = need.most_sharing(free)
    expected = f"at most {most}" if most else "more memory, because not even one slot fits"
    long_row = f", and {_size(need.longest_tokens * need.token_bytes)} for a row as long as allowed"
    return (
        f"does not fit into memory, got {slots} ({_size(need.least(slots))}: {_size(need.least_slot_bytes)} a slot"
        f"{long_row * bool(need.token_bytes)}; {_size(free)} are free); expected {expected}. "
        "Lower it, engine.max_source_tokens or engine.max_new_tokens."
    )


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.0f} TB"


def in_halves(enter: Callable[[list[int], list[Row]], None], slots: list[int], rows: list[Row]) -> None:
    """A batch enters; where memory is short after all, its halves one after the other, down to single rows."""
    try:
        enter(slots, rows)
    except RuntimeError as error:
        if len(slots) == 1 or not is_out_of_memory(error):
            raise
    else:
        return
    # Outside the handler, which would keep the failed attempt's tensors alive.
    log.warning("%s", {"event": "engine.prefill_split", "rows": len(slots)})
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(slots) // 2
    in_halves(enter, slots[:half], rows[:half])
    in_halves(enter, slots[half:], rows[half:])


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch found no memory: a class of its own on a GPU, known by its words on a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


# -------------------------------------------------------------------- what an engine asks for


def need_of(pair: Pair, config: Config) -> Need:
    """Bytes of every tensor that an engine and its runners allocate."""
    plain = config.policy.kind == "plain"
    shape = SlotShape(
        slots=1,
        staging=1,
        max_prompt=pair.max_prompt,
        max_new_tokens=pair.max_new_tokens,
        max_source=pair.max_source_ids,
        window=1 if plain else max(config.drafter.window, most_drafted(config) + 1),
        heard=pair.places_heard,
    )
    models = [(pair.verifier, pair.bits)]
    if pair.drafter is not None and not plain:
        models.append((pair.drafter, pair.drafter_bits))
    measured = [(model, measure(model, family_of(model))) for model, _ in models]
    state = SlotState(shape, config.telemetry.level, torch.device("meta"), config.telemetry.teacher_top_k)
    tensors = sum(value.nbytes for value in vars(state).values() if isinstance(value, torch.Tensor))
    geometries = [replace(geometry, dtype=pair.cache_dtype or geometry.dtype) for _, geometry in measured]
    row_bytes = tensors // shape.capacity + sum(_cache_bytes(geometry, shape) for geometry in geometries)
    place_bytes = sum(map(_position_bytes, geometries))
    packed = sum(_packed_bytes(model, bits) for model, bits in models)
    if pair.parallel is not None and not plain:
        own = _parallel_geometry(pair.parallel, measured[0][1])
        width_bytes = pair.parallel.shape.width * pair.verifier.dtype.itemsize
        row_bytes += _cache_bytes(own, shape) + (shape.length + 1) * width_bytes
        place_bytes += _position_bytes(own) + width_bytes
        packed += _packed_bytes(pair.parallel, pair.drafter_bits)
    prefill = max(_prefill_bytes(model, geometry, pair.max_source_tokens) for model, geometry in measured)
    if not pair.is_encoder_decoder:  # prompts are run a few at a time
        most = PREFILL_TOKENS[pair.device.type]
        packed += max(_prefill_bytes(model, geometry, most, shape.length) for model, geometry in measured)
        prefill = _state_bytes(pair.verifier, pair.max_source_tokens) if pair.parallel is not None else 0
    logits = _logits_bytes(pair.verifier, config, shape.window)
    # What graphs use for a moment, nothing else can.
    passing = prefill + logits if uses_graphs(config.engine.graphs, pair.device) else max(prefill, logits)
    more = shape.places - _kept_places(shape, pair.device)
    least_bytes = row_bytes - more * place_bytes
    return Need(
        packed + LEAST_STAGED * row_bytes,
        2 * row_bytes + passing,
        packed + LEAST_STAGED * least_bytes,
        2 * least_bytes + passing,
        place_bytes if more else 0,
        shape.places,
    )


def _kept_places(shape: SlotShape, device: torch.device) -> int:
    """Of a row's, those whose memory stays allocated whatever row is there."""
    if device.type != "cpu":
        return shape.places
    return min(shape.length, KEPT_PLACES) + min(shape.encoded, KEPT_PLACES)


def _cache_bytes(geometry: Geometry, shape: SlotShape) -> int:
    """Keys and values of one row of one runner, with the mask over its source: of caches on the meta device."""
    geometry = replace(geometry, device=torch.device("meta"))
    return SlotCache(geometry, 1, shape.length).nbytes + SourceCache(geometry, 1, shape.encoded).nbytes


def _parallel_geometry(network: ParallelNetwork, verifier: Geometry) -> Geometry:
    """Of a parallel drafter's own keys and values."""
    return replace(verifier, layers=network.shape.layers, heads=network.shape.heads, width=network.shape.head_width)


def _position_bytes(geometry: Geometry) -> int:
    return geometry.layers * 2 * geometry.heads * geometry.width * geometry.dtype.itemsize


def _logits_bytes(model: Model, config: Config, window: int) -> int:
    """The window's logits and what verification makes of them: a float32 copy, or both models' probabilities."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    copies = 4 if config.verification.kind == "sampling" else 2
    return window * vocabulary * (model.dtype.itemsize + 4 * copies)


def _state_bytes(model: Model, source: int) -> int:
    """The last hidden states behind a prompt, as they come and side by side with the others'."""
    return 2 * source * int(model.config.get_text_config().hidden_size) * model.dtype.itemsize


def _prefill_bytes(model: Model, geometry: Geometry, source: int, length: int | None = None) -> int:
    """What encoding so many tokens holds at its peak: a layer's activations, and the keys and values not yet stored.

    `length`: positions that they may see, their own ones unless told otherwise.
    """
    seen = source if length is None else max(source, length)
    family = family_of(model)
    hidden = int(model.config.get_text_config().hidden_size)
    layers = [layer for layer in linears(model) if layer is not output_layer(model)]
    widest = max([outputs_of(layer) for layer in layers], default=4 * hidden)
    activations = source * (2 * widest + 8 * hidden) * geometry.dtype.itemsize
    activations += 2 * source * seen * geometry.dtype.itemsize if length is not None else 0  # masks
    fresh = source * _position_bytes(geometry) if family.is_encoder_decoder else 0
    relative = family.is_encoder_decoder and family.positions_key is None
    scored = relative or model.config._attn_implementation == "eager"
    return activations + fresh + (2 * geometry.heads * source * seen * 4 if scored else 0)


def _packed_bytes(model: Model | ParallelNetwork, bits: Bits) -> int:
    """Weights in the layout of a CPU's products, next to the model's own where those are not in it from the start."""
    return bytes_to_pack(model, bits) if next(model.parameters()).device.type == "cpu" else 0


# -------------------------------------------------------------------- what the machine has


def free_bytes(device: torch.device) -> int:
    """Memory that can be had on the device now."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return host_free_bytes()


def host_free_bytes(root: Path = Path("/")) -> int:
    """The smaller of what the machine has left and what the process's control groups allow it."""
    machine = root / "proc/meminfo"
    if not machine.is_file():  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    known = dict(line.split(":", 1) for line in machine.read_text().splitlines() if ":" in line)
    available = int(known["MemAvailable"].split()[0]) * 1024
    return min([available, *_allowed_by_groups(root)])


def _allowed_by_groups(root: Path) -> list[int]:
    """Of versions 2 and 1, what each group from the process's own up to the outermost has left."""
    groups = root / "proc/self/cgroup"
    left = []
    for line in groups.read_text().splitlines() if groups.is_file() else []:
        _, controllers, path = line.split(":", 2)
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        if controllers and "memory" not in controllers.split(","):
            continue
        own = base / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(base):
                left += _left_in(folder, "memory.max", "memory.current")
                left += _left_in(folder, "memory.limit_in_bytes", "memory.usage_in_bytes")
    return left


def _left_in(folder: Path, limit_name: str, used_name: str) -> list[int]:
    """Pages of files count as used, though the kernel gives them up when they are wanted."""
    limit, used = folder / limit_name, folder / used_name
    if not (limit.is_file() and used.is_file()) or limit.read_text().strip() == "max":
        return []
    counts = folder / "memory.stat"
    lines = counts.read_text().splitlines() if counts.is_file() else []
    files = {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}
    reclaimable = files.get("total_inactive_file", files.get("inactive_file", 0))
    return [max(0, int(limit.read_text()) - int(used.read_text()) + reclaimable)]
