"""R-Stitch for one row, written from the paper's listing: whole forwards of transformers, no caches, no batch.

    speaker = small
    until the end:
        token, entropy = speaker(row)
        if speaker is small and entropy > tau: drop the token; speaker = large
        else: keep the token; if speaker is large and entropy <= tau: speaker = small

With `speculate`, what the small model is not sure of is kept as a draft, goes on for `most` tokens, and is checked by
the large model, which is then asked again.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmasd.core import Request
from cmasd.engine import Pair
from cmasd.signals import FROM_DRAFT, FROM_SMALL, FROM_VERIFIER
from cmasd.verification.own_draws import COIN, LARGE, SMALL, uniform


@dataclass
class Told:
    """What became of a row."""

    tokens: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    """Over ln V, of the model that said, or drafted, each token."""
    switches: int = 0
    large_steps: int = 0


class Oracle:
    """Both models of a pair."""

    def __init__(
        self,
        pair: Pair,
        tau: float,
        temperature: float | None = None,
        seed: int = 0,
        tau_large: float | None = None,
    ) -> None:
        """`temperature` None: greedy. `tau_large` None: tau, as in the listing."""
        assert pair.drafter is not None
        self.pair, self.small, self.large = pair, pair.drafter, pair.verifier
        self.tau, self.temperature, self.seed = tau, temperature, seed
        self.tau_large = tau if tau_large is None else tau_large
        self.eos = pair.constraints.eos_token_ids

    @torch.no_grad()
    def logits(self, model: Any, source: list[int], said: list[int]) -> Tensor:
        """(V,) behind a row."""
        if self.pair.is_encoder_decoder:
            decoder = torch.tensor([[*self.pair.decoder_start, *said]])
            return model(input_ids=torch.tensor([source]), decoder_input_ids=decoder).logits[0, -1]  # type: ignore[no-any-return]
        return model(input_ids=torch.tensor([[*source, *said]])).logits[0, -1]  # type: ignore[no-any-return]

    def entropy(self, logits: Tensor) -> float:
        """Over its largest value."""
        log_p = logits.log_softmax(-1)
        return float(-(log_p.exp() * log_p).sum()) / math.log(len(logits))

    def is_sure(self, entropy: float, is_large: bool) -> bool:
        """With tau = 0 the large model says all."""
        return self.tau > 0 and entropy <= (self.tau_large if is_large else self.tau)

    def place(self, request: Request, said: list[int]) -> int:
        """Of the next token in the row's buffer."""
        return len(said) + (1 if self.pair.is_encoder_decoder else len(request.source))

    def coin(self, request: Request, said: list[int], purpose: int) -> float:
        """The row's own draw for its next token."""
        place = np.array([self.place(request, said)])
        return float(uniform(self.seed, np.array([request.key]), place, purpose)[0])

    def token(self, logits: Tensor, request: Request, said: list[int], purpose: int) -> int:
        """The likeliest, or that in which the draw falls."""
        if self.temperature is None:
            return int(logits.argmax())
        return self.drawn((logits / self.temperature).softmax(-1), self.coin(request, said, purpose))

    def drawn(self, weights: Tensor, coin: float) -> int:
        """The token whose share of the weights a draw falls into."""
        left = coin * float(weights.sum())
        for token, weight in enumerate(weights.tolist()):
            left -= weight
            if left < 0:
                return token
        raise AssertionError("a draw is below 1")

    def is_over(self, told: Told, request: Request) -> bool:
        """No token follows."""
        return len(told.tokens) >= request.max_new_tokens or bool(set(told.tokens[-1:]) & set(self.eos))

    def decode(self, request: Request) -> Told:
        """The listing."""
        told, is_large = Told(), self.tau == 0
        while not self.is_over(told, request):
            logits = self.logits(self.large if is_large else self.small, request.source, told.tokens)
            token, entropy = (
                self.token(logits, request, told.tokens, LARGE if is_large else SMALL),
                self.entropy(logits),
            )
            sure = self.is_sure(entropy, is_large)
            told.large_steps += is_large
            if is_large or sure:
                told.tokens.append(token)
                told.sources.append(FROM_VERIFIER if is_large else FROM_SMALL)
                told.entropies.append(entropy)
            if is_large == sure and not self.is_over(told, request):
                is_large = not is_large
                told.switches += 1
        return told

    def decode_checked(self, request: Request, most: int) -> Told:
        """The listing with drafts in place of dropped tokens; greedy or sampling."""
        told, is_large = Told(), self.tau == 0
        while not self.is_over(told, request):
            if not is_large:
                logits = self.logits(self.small, request.source, told.tokens)
                if self.is_sure(self.entropy(logits), is_large=False):
                    told.tokens.append(self.token(logits, request, told.tokens, SMALL))
                    told.sources.append(FROM_SMALL)
                    told.entropies.append(self.entropy(logits))
                    continue
                is_large, told.switches = True, told.switches + 1
            is_large = not self.check(told, request, most)
            told.switches += not is_large and not self.is_over(told, request)
        return told

    def check(self, told: Told, request: Request, most: int) -> bool:
        """Draft, and let the large model check; whether it is sure of its own token."""
        before, said = list(told.tokens), list(told.tokens)
        drafted: list[Tensor] = []
        while len(drafted) < min(most, request.max_new_tokens - len(before) - 1):
            drafted.append(self.logits(self.small, request.source, said))
            said.append(self.token(drafted[-1], request, said, SMALL))
            if said[-1] in self.eos:
                break
        told.large_steps += 1
        for logits, token in zip(drafted, said[len(before) :], strict=True):
            own = self.logits(self.large, request.source, told.tokens)
            if not self.accepts(own, logits, token, request, told.tokens):
                return self.say(told, own, request, before, logits)
            told.tokens.append(token)
            told.sources.append(FROM_DRAFT)
            told.entropies.append(self.entropy(logits))
            if token in self.eos:
                return False
        return self.say(told, self.logits(self.large, request.source, told.tokens), request, before, None)

    def accepts(self, own: Tensor, drafted: Tensor, token: int, request: Request, said: list[int]) -> bool:
        """Exactly, or in distribution."""
        if self.temperature is None:
            return token == int(own.argmax())
        ours, theirs = ((one / self.temperature).softmax(-1)[token] for one in (own, drafted))
        return self.coin(request, said, COIN) * float(theirs) < float(ours)

    def say(self, told: Told, own: Tensor, request: Request, before: list[int], rejected: Tensor | None) -> bool:
        """The large model's token, behind a rejected one or behind the draft; whether it is sure."""
        if self.temperature is None:
            token = int(own.argmax())
        else:
            weights = (own / self.temperature).softmax(-1)
            if rejected is not None:
                weights = (weights - (rejected / self.temperature).softmax(-1)).clamp_min(0)
            token = self.drawn(weights, self.coin(request, before, LARGE))
        told.tokens.append(token)
        told.sources.append(FROM_VERIFIER)
        told.entropies.append(self.entropy(own))
        return self.is_sure(self.entropy(own), is_large=True)
