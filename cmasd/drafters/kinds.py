"""The kinds of drafters with a model: what is loaded for each, and how it is built from that.

The kinds without one are `free.py`'s. A new kind is a file of its own, its entry in `KINDS`, and its name in
`cmasd/config/tree.py`; neither who loads a pair nor who builds an engine asks which kind it is.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cmasd.checkpoints.by_name import Model, Tokenizer, check_pair, load_tokenizer
from cmasd.checkpoints.parallel_folder import is_parallel, load_parallel
from cmasd.checkpoints.streaming import load_ready
from cmasd.confidence import Confidence
from cmasd.config.tree import Config
from cmasd.drafters.base import Drafter
from cmasd.drafters.choice import Choice
from cmasd.drafters.model import ModelDrafter
from cmasd.drafters.parallel import ParallelDrafter
from cmasd.errors import ConfigError, ModelError
from cmasd.generation.constraints import Constraints
from cmasd.kernels import Bits
from cmasd.models.early_exit import early_exit
from cmasd.models.families import Words
from cmasd.models.parallel_network import ParallelModel, ParallelNetwork
from cmasd.runner.base import Runner
from cmasd.runner.load import load_runner, parallel_shape, share_encoder, share_sources, share_weights
from cmasd.runner.parallel_runner import ParallelRunner


class Loaded(NamedTuple):
    """What drafts: a model, or a network over the verifier's states; neither where nothing is to be loaded."""

    model: Model | None = None
    network: ParallelNetwork | None = None


@dataclass(frozen=True)
class Parts:
    """All that a drafter is built from."""

    config: Config
    loaded: Loaded
    bits: Bits
    """That weights are rounded to."""
    model: Model
    """The verifier's."""
    verifier: Runner
    most: int
    """Tokens of a draft."""
    cache_dtype: torch.dtype | None
    """Of keys and values; None: the model's."""
    words: Words
    choose: Choice
    confidence: Confidence
    constraints: Constraints
    eos_ids: Tensor


class Kind(ABC):
    """One of them."""

    is_rounded = False
    """Whether it always drafts in `drafter.bits`."""

    @abstractmethod
    def load(self, config: Config, verifier: Model, tokenizer: Tokenizer, bits: Bits) -> Loaded:
        """Raises `ModelError` or `ConfigError`."""

    @abstractmethod
    def build(self, parts: Parts) -> Drafter:
        """Over as many slots as the verifier has."""

    def most(self, config: Config, loaded: Loaded) -> int:
        """Tokens that it drafts at most, beside free drafts, which may be longer."""
        return config.drafter.max_draft_tokens


class SmallerModel(Kind):
    """`model`: that of `models.drafter`, token by token."""

    is_of_verifier = False
    """Whether its decoder is the verifier's, or the beginning of it."""

    def load(self, config: Config, verifier: Model, tokenizer: Tokenizer, bits: Bits) -> Loaded:
        """Checked to have the verifier's tokens."""
        models, name = config.models, config.models.drafter or ""
        if is_parallel(name):
            raise ModelError(f"models.drafter: {name} drafts in one pass. Set drafter.kind=parallel.")
        trust = {"trust_remote_code": models.trust_remote_code, "allow_pickle": models.allow_pickle}
        drafter = load_ready(name, models.dtype, verifier.device, bits=bits, **trust)
        drafter_tokenizer = load_tokenizer(name, trust_remote_code=models.trust_remote_code)
        check_pair(verifier.config, drafter.config, tokenizer, drafter_tokenizer)
        return Loaded(drafter)

    def build(self, parts: Parts) -> Drafter:
        """See `ModelDrafter`."""
        ways = parts.config.drafter.tree_branching
        rules = self._rules(parts)
        return ModelDrafter(self._runner(parts), parts.confidence, rules, parts.choose, parts.eos_ids, ways)

    @staticmethod
    def _rules(parts: Parts) -> Constraints:
        """The verifier's. Those of what hears seldom act, and would be looked up at every token; what breaks them is
        rejected, except under policy `stitch`, where nobody would.
        """
        rules = parts.constraints
        if rules.timestamps is None or parts.config.policy.kind == "stitch":
            return rules
        return Constraints(rules.eos_token_ids)

    def _runner(self, parts: Parts) -> Runner:
        model, verifier = parts.loaded.model, parts.verifier
        assert model is not None, "the pair is loaded with a drafter unless the policy is plain"
        shape = (verifier.slots, verifier.max_length, verifier.max_source_length)
        graphs, cached = parts.config.engine.graphs, parts.cache_dtype
        runner = load_runner(model, *shape, parts.words, parts.bits, graphs, cached)
        share_encoder(runner, verifier)
        if self.is_of_verifier and parts.config.policy.kind != "stitch":  # there the verifier may never read a row
            share_sources(runner, verifier, may_round=self.is_rounded)
        return runner


class FirstLayers(SmallerModel):
    """`self`: the verifier's own."""

    is_of_verifier = True

    def load(self, config: Config, verifier: Model, tokenizer: Tokenizer, bits: Bits) -> Loaded:
        """The same tensors."""
        return Loaded(early_exit(verifier, config.drafter.self_layers))

    def _runner(self, parts: Parts) -> Runner:
        runner = super()._runner(parts)
        share_weights(runner, parts.verifier)
        return runner


class RoundedVerifier(SmallerModel):
    """`quantised`: the verifier's own weights in `drafter.bits`."""

    is_rounded = is_of_verifier = True

    def load(self, config: Config, verifier: Model, tokenizer: Tokenizer, bits: Bits) -> Loaded:
        """Its runner rounds them."""
        return Loaded(verifier)


class OnePass(Kind):
    """`parallel`: what `cmasd train` made for this verifier."""

    def load(self, config: Config, verifier: Model, tokenizer: Tokenizer, bits: Bits) -> Loaded:
        """Checked to be of this verifier, and trained for as many tokens."""
        name = config.models.drafter or ""
        encoder = verifier.get_encoder() if verifier.config.is_encoder_decoder else None
        network = load_parallel(name, parallel_shape(verifier), verifier.dtype, verifier.device, encoder)
        if not config.drafter.free and config.drafter.max_draft_tokens > network.shape.queries:
            raise ConfigError(
                f"drafter.max_draft_tokens: must be at most {network.shape.queries}, which {name} was trained for, "
                f"got {config.drafter.max_draft_tokens}."
            )
        if config.score == "head" and not network.shape.has_confidence:
            raise ConfigError(
                f"confidence.kind: {name} has no confidence head, got {config.confidence.kind}. Use max_prob."
            )
        return Loaded(network=network)

    def build(self, parts: Parts) -> Drafter:
        """See `ParallelDrafter`."""
        network, device = parts.loaded.network, parts.verifier.device
        assert network is not None, "the pair is loaded with a drafter unless the policy is plain"
        model = ParallelModel(network, parts.model, parts.words, parts.bits)
        runner = ParallelRunner(model, parts.verifier, parts.config.engine.graphs, parts.words.tensor(device))
        most = min(parts.most, self.most(parts.config, parts.loaded))
        ways = parts.config.drafter.tree_branching
        return ParallelDrafter(runner, most, parts.confidence, parts.choose, parts.eos_ids, ways)

    def most(self, config: Config, loaded: Loaded) -> int:
        """No more than it was trained for."""
        asked = config.drafter.max_draft_tokens
        return asked if loaded.network is None else min(asked, loaded.network.shape.queries)


KINDS: dict[str, Kind] = {
    "model": SmallerModel(),
    "parallel": OnePass(),
    "self": FirstLayers(),
    "quantised": RoundedVerifier(),
}
"""By `drafter.kind`."""


def load_drafter(config: Config, verifier: Model, tokenizer: Tokenizer, bits: Bits) -> Loaded:
    """What drafts, or nothing: a policy may never draft, and texts need no model."""
    if config.policy.kind == "plain" or config.drafter.model is None:
        return Loaded()
    return KINDS[config.drafter.model].load(config, verifier, tokenizer, bits)
