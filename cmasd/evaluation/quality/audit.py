"""Whether rows came out as plain decoding says them; and where not, whether rounding or a fault is the cause.

Greedy speculation and plain decoding run the same products over different numbers of rows, which may round differently:
where two logits nearly tie, the other one wins. A first divergence is looked into by one forward over the row up to it:
two logits that are further apart than rounding can put them mean that the decoding is wrong (`ALGORITHMIC`).

Shapes: T tokens of a row, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cmasd.config.tree import Config
from cmasd.core import Request
from cmasd.engine import Pair
from cmasd.engine.capacity import resolve
from cmasd.engine.hearing import Hearing
from cmasd.evaluation.speed.request_decoder import EngineDecoder, plain_config
from cmasd.runner.base import Runner

NEAR_TIE, ALGORITHMIC = "near-tie", "algorithmic"
TIE_UNITS = 1000.0
"""Units in the last place of the larger logit: a forward of some hundred roundings puts logits some ten apart, rarely a
hundred; the second token of a wrong text is millions behind the first."""


@dataclass(frozen=True)
class Divergence:
    """Where a row first differs from plain decoding."""

    key: int
    """Of the request."""
    position: int
    """Of the output token, from 0."""
    plain_token: int | None
    """None where plain decoding had ended."""
    token: int | None
    """None where the row had ended."""
    gap_nats: float
    """Logit of plain's token minus that of the row's, after what both say before; NaN where one had ended."""
    gap_units: float
    """The same in units of the larger logit's last place."""
    cause: str
    """`near-tie` or `algorithmic`."""


def decode_plainly(pair: Pair, config: Config, requests: Sequence[Request]) -> dict[int, list[int]]:
    """What greedy AR says of the same rows, by the same model in the same precision."""
    plain = plain_config(config)
    return EngineDecoder(pair, resolve(pair, plain)).decode(list(requests))


def divergences(
    pair: Pair,
    config: Config,
    requests: Sequence[Request],
    plain: Mapping[int, list[int]],
    outputs: Mapping[int, list[int]],
) -> list[Divergence]:
    """Of rows whose outputs are not plain decoding's, in the order of the requests."""
    differing = [request for request in requests if outputs[request.key] != plain[request.key]]
    if not differing:
        return []
    decoder = EngineDecoder(pair, resolve(pair, plain_config(config)))
    return [_divergence(pair, decoder, one, plain[one.key], outputs[one.key]) for one in differing]


def _divergence(
    pair: Pair, decoder: EngineDecoder, request: Request, plain: list[int], output: list[int]
) -> Divergence:
    position = next(
        (at for at, (ours, theirs) in enumerate(zip(plain, output, strict=False)) if ours != theirs),
        min(len(plain), len(output)),
    )
    if position in (len(plain), len(output)):
        ours, theirs = ([*row, None][position] if position <= len(row) else None for row in (plain, output))
        return Divergence(request.key, position, ours, theirs, np.nan, np.nan, ALGORITHMIC)
    ours, theirs = plain[position], output[position]
    logits_V = _logits(pair, decoder, request, plain[:position])
    top, other = float(logits_V[ours]), float(logits_V[theirs])
    gap = top - other
    if not np.isfinite(gap):  # what the checkpoint's rules forbid is at minus infinity: no rounding leads there
        return Divergence(request.key, position, ours, theirs, gap, gap, ALGORITHMIC)
    units = gap / (float(torch.finfo(logits_V.dtype).eps) * max(abs(top), abs(other), 1e-30))
    cause = NEAR_TIE if abs(units) <= TIE_UNITS else ALGORITHMIC
    return Divergence(request.key, position, ours, theirs, gap, units, cause)


@torch.inference_mode()
def _logits(pair: Pair, decoder: EngineDecoder, request: Request, said: list[int]) -> torch.Tensor:
    """(V,) after a row's tokens, constraints applied."""
    engine = decoder.engine
    runner: Runner = engine.verifier
    runner.prefill([0], [request.source])
    prompt = pair.decoder_start if pair.is_encoder_decoder else request.source
    if pair.sound is not None:  # as if all was said in the first window, as it is for most recordings
        [prompt] = Hearing(pair.sound, runner).begin([0], [request])
    tokens = [*prompt, *said]
    first = 0 if pair.is_encoder_decoder else len(request.source) - 1
    fed_1T = torch.tensor([tokens[first:]], device=runner.device)
    logits_1TV = runner.forward(fed_1T, torch.tensor([first], device=runner.device))[:, -1:]
    starts_1 = torch.tensor([len(tokens) - 1], device=runner.device)
    held_1L = torch.tensor([tokens], device=runner.device)
    prompts_1, limits_1 = torch.tensor([len(prompt)]), torch.tensor([len(prompt) + request.max_new_tokens])
    constrained = engine.iterations.constraints.apply(
        logits_1TV, held_1L, starts_1, prompts_1.to(runner.device), limits_1.to(runner.device), fed_1T[:, -1:]
    )
    return constrained[0, 0].cpu()
