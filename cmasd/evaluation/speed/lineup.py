"""Who takes part in a bench: our engine under several policies, and the peers, by name.

`plain` is always there, for every ratio is to it. What cannot take part is left out with a reason: a peer that is not
installed, a policy that needs a drafter which the pair lacks. Peers are loaded once, whatever the batch sizes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from cmasd.checkpoints.by_name import Model
from cmasd.config.tree import Config
from cmasd.engine import Pair
from cmasd.errors import ModelError
from cmasd.evaluation.speed.engines import GREEDY, OPENVINO, OPENVINO_DRAFTED, STOCK, Lineup, drafts
from cmasd.evaluation.speed.peers import (
    Converted,
    CTranslate2,
    CTranslate2Heard,
    HfAssisted,
    HfGenerate,
    OpenVino,
    OpenVinoProcess,
    load_ctranslate2,
    load_openvino,
    stock_drafter,
    stock_verifier,
)
from cmasd.evaluation.speed.request_decoder import EngineDecoder, Lengths, plain_config
from cmasd.evaluation.speed.timing import RequestDecoder
from cmasd.telemetry.stats import EngineStats

NO_DRAFTER = "the pair has no drafter"
NO_EARLIER_RUN = "bench has no outputs of an earlier run, which cmasd compare has"


@dataclass(frozen=True)
class Contender:
    """One engine at one batch size, ready to decode."""

    engine: str
    dtype: str
    lossless: str
    """Its promise: `exact`, `in distribution`, `lossy`, `greedy` or `beam search`."""
    decoder: RequestDecoder

    @property
    def name(self) -> str:
        """Unique in a bench."""
        return f"{self.engine} {self.dtype}"

    @property
    def stats(self) -> EngineStats | None:
        """Counters so far; None for a peer."""
        return replace(self.decoder.stats) if isinstance(self.decoder, EngineDecoder) else None

    @property
    def gap_nats(self) -> float:
        """Log-probability gaps of all output tokens so far, added up; 0 for a peer, whose gaps nobody counts."""
        return self.decoder.gap_nats if isinstance(self.decoder, EngineDecoder) else 0.0

    @property
    def lengths_2K(self) -> Lengths | None:
        """(2, k + 1) drafting row-iterations so far by tokens drafted, and by tokens accepted; None for a peer."""
        return self.decoder.lengths_2K if isinstance(self.decoder, EngineDecoder) else None


def our_contender(name: str, pair: Pair, config: Config, batch_size: int) -> Contender:
    """An engine of ours, started: what it measures for itself lies behind."""
    sized = replace(config, engine=replace(config.engine, slots=batch_size))
    dtype = dtype_name(pair.verifier.dtype) if config.models.dtype == "auto" else config.models.dtype
    return Contender(name, dtype, config.lossless, EngineDecoder(pair, sized))


class Contenders:
    """Builds the contenders of every batch size from what is loaded once."""

    def __init__(self, pair: Pair, config: Config, lineup: Lineup, on_skip: Callable[[str, str], None]) -> None:
        """`on_skip` is told of every engine that is left out, and why."""
        self.pair = pair
        self.configs = {
            name: one for name, one in engine_configs(config, lineup).items() if _can_run(name, pair, one, on_skip)
        }
        self.stock, engines = pair.verifier, list(lineup.engines)
        try:
            if set(engines) & set(STOCK):
                self.stock = stock_verifier(pair, config)
        except ModelError as error:
            for name in filter(STOCK.__contains__, engines):
                on_skip(name, str(error))
            engines = [name for name in engines if name not in STOCK]
        self.has_generate = "hf_generate" in engines
        self.most_drafted, threads = config.drafter.max_draft_tokens, torch.get_num_threads()
        loaders: dict[str, Callable[[], Any]] = {
            "ctranslate2": lambda: load_ctranslate2(pair, self.stock, threads),
            "hf_assisted": lambda: stock_drafter(pair, config),
            OPENVINO: lambda: load_openvino(pair, config, threads),
            OPENVINO_DRAFTED: lambda: load_openvino(pair, config, threads, drafts=True),
        }
        found: dict[str, Any] = {}
        for name in filter(loaders.__contains__, engines):
            try:
                found[name] = loaders[name]()
            except ModelError as error:
                on_skip(name, str(error).removeprefix(f"{name}: "))
        self.converted: dict[str, Converted] = found.get("ctranslate2", {})
        self.assistant: Model | None = found.get("hf_assisted")
        self.exported: dict[str, OpenVinoProcess] = {
            name: found[name] for name in (OPENVINO, OPENVINO_DRAFTED) if name in found
        }

    def of(self, batch_size: int) -> list[Contender]:
        """All of them, `plain` first."""
        found = [our_contender(name, self.pair, config, batch_size) for name, config in self.configs.items()]
        if self.has_generate:
            found.append(hf_contender(self.pair, self.stock, batch_size))
        if self.assistant is not None and batch_size == 1:
            assisted = HfAssisted(self.pair, self.stock, self.assistant)
            found.append(Contender("hf_assisted", dtype_name(self.stock.dtype), GREEDY, assisted))
        found += ct2_contenders(self.pair, self.converted, batch_size)
        for name, one in self.exported.items():
            decoder = OpenVino(self.pair, one, batch_size, self.most_drafted)
            found.append(Contender(name, one.dtype, GREEDY if one.dtype == "float32" else "lossy", decoder))
        return found


def hf_contender(pair: Pair, stock: Model, batch_size: int) -> Contender:
    """`generate` of transformers, greedy."""
    return Contender("hf_generate", dtype_name(stock.dtype), GREEDY, HfGenerate(pair, batch_size, stock))


def ct2_contenders(pair: Pair, converted: dict[str, Converted], batch_size: int) -> list[Contender]:
    """CTranslate2 at each of its compute types."""
    make = CTranslate2 if pair.sound is None else CTranslate2Heard
    return [
        Contender("ctranslate2", dtype, "lossy" if dtype == "int8" else GREEDY, make(pair, one, batch_size))
        for dtype, one in converted.items()
    ]


def engine_configs(config: Config, lineup: Lineup) -> dict[str, Config]:
    """Our engines by name; `config` gives everything they share but policy and verification."""
    exact = replace(config, verification=replace(config.verification, kind="exact"))
    configs = {"plain": plain_config(exact)}
    for name in dict.fromkeys(filter(drafts, lineup.engines)):
        modulated = replace(config, verification=replace(config.verification, kind="modulated"))
        base = modulated if name == "paper_modulated" else exact
        configs[name] = _with_policy(base, name.removesuffix("_modulated"))
    for k in dict.fromkeys(lineup.fixed):
        drafter = replace(config.drafter, max_draft_tokens=k, min_draft_tokens=min(k, config.drafter.min_draft_tokens))
        configs[f"fixed_{k}"] = _with_policy(replace(exact, drafter=drafter), "fixed")
    return configs


def _with_policy(config: Config, kind: Any) -> Config:
    return replace(config, policy=replace(config.policy, kind=kind))


def _can_run(name: str, pair: Pair, config: Config, on_skip: Callable[[str, str], None]) -> bool:
    if name == "plain":
        return True
    if config.drafter.kinds == ("previous",):
        on_skip(name, NO_EARLIER_RUN)
        return False
    if not can_draft(pair, config):
        on_skip(name, NO_DRAFTER)
        return False
    return True


def can_draft(pair: Pair, config: Config) -> bool:
    """Whether what `drafter.kind` asks for is loaded."""
    kind = config.drafter.model
    return kind is None or (pair.parallel if kind == "parallel" else pair.drafter) is not None


def dtype_name(dtype: torch.dtype) -> str:
    """As results call it: float32."""
    return str(dtype).removeprefix("torch.")
