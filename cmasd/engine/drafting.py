"""The drafter that a configuration asks for, over as many slots as the verifier has."""

from torch import Tensor

from cmasd.codecs.text import inside_words
from cmasd.confidence import build_confidence
from cmasd.config.tree import Config
from cmasd.drafters import Drafter, FreeDrafter, MixedDrafter
from cmasd.drafters.choice import Choice
from cmasd.drafters.kinds import KINDS, Loaded, Parts
from cmasd.engine.pair import Pair
from cmasd.generation.constraints import Constraints
from cmasd.models.families import Words
from cmasd.runner.base import Runner


def build_drafter(
    config: Config, pair: Pair, most: int, verifier: Runner, constraints: Constraints, eos_ids: Tensor
) -> Drafter | None:
    """Of at most `most` tokens a draft; None for 0."""
    if most == 0:
        return None
    settings = config.drafter
    free = FreeDrafter(
        settings.free,
        settings.max_ngram,
        settings.memory_tokens,
        verifier.vocabulary_size,
        pair.is_encoder_decoder,
        inside_words(pair.codec) if settings.free else (),
    )
    if settings.model is None:
        return free
    kind, parts = KINDS[settings.model], _parts(config, pair, most, verifier, constraints, eos_ids)
    model = kind.build(parts)
    if not settings.free:
        return model
    return MixedDrafter(free, model, kind.most(config, parts.loaded), recycles="recycle" in settings.free)


def free_of(drafter: Drafter | None) -> FreeDrafter | None:
    """The part of it that drafts of known texts."""
    if isinstance(drafter, MixedDrafter):
        return drafter.free
    return drafter if isinstance(drafter, FreeDrafter) else None


def _parts(config: Config, pair: Pair, most: int, verifier: Runner, constraints: Constraints, eos_ids: Tensor) -> Parts:
    words = Words(pair.constraints.banned, pair.shortlist)
    samples = config.verification.kind == "sampling"
    return Parts(
        config=config,
        loaded=Loaded(pair.drafter, pair.parallel),
        bits=pair.drafter_bits,
        model=pair.verifier,
        verifier=verifier,
        most=most,
        cache_dtype=pair.cache_dtype,
        words=words,
        choose=Choice(
            config.verification.temperature if samples else None,
            config.verification.seed,
            words.tensor(pair.device),
            verifier.vocabulary_size,
            pair.device,
            draws=config.policy.kind != "stitch",
        ),
        confidence=build_confidence(config.confidence, config.score),
        constraints=constraints,
        eos_ids=eos_ids,
    )
