"""The drafter that a configuration asks for, over as many slots as the verifier has."""

from torch import Tensor

from cmasd.confidence import build_confidence
from cmasd.config.tree import Config
from cmasd.drafters import Drafter, FreeDrafter, MixedDrafter, ModelDrafter, ParallelDrafter
from cmasd.drafters.choice import Choice
from cmasd.engine.pair import Pair
from cmasd.runner.base import Runner
from cmasd.runner.constraints import Constraints
from cmasd.runner.families import Words
from cmasd.runner.load import load_runner, share_encoder, share_weights
from cmasd.runner.parallel import ParallelModel
from cmasd.runner.parallel_runner import ParallelRunner


def build_drafter(
    config: Config, pair: Pair, most: int, verifier: Runner, constraints: Constraints, eos_ids: Tensor
) -> Drafter | None:
    """Of at most `most` tokens a draft; None for 0."""
    if most == 0:
        return None
    settings = config.drafter
    free = FreeDrafter(
        settings.free, settings.max_ngram, settings.memory_tokens, verifier.vocabulary_size, pair.is_encoder_decoder
    )
    if settings.model is None:
        return free
    model = build_model_drafter(config, pair, most, verifier, constraints, eos_ids)
    return MixedDrafter(free, model, model_most(config, pair)) if settings.free else model


def model_most(config: Config, pair: Pair) -> int:
    """Tokens that the model drafts at most beside free drafts, which may be longer than it was trained for."""
    most = config.drafter.max_draft_tokens
    if config.drafter.model != "parallel" or pair.parallel is None:
        return most
    return min(most, pair.parallel.shape.queries)


def build_model_drafter(
    config: Config, pair: Pair, most: int, verifier: Runner, constraints: Constraints, eos_ids: Tensor
) -> ModelDrafter | ParallelDrafter:
    """Of at most `most` tokens a draft."""
    words = Words(pair.constraints.banned, pair.shortlist)
    choose = Choice(
        config.verification.temperature if config.verification.kind == "sampling" else None,
        config.verification.seed,
        words.tensor(pair.device),
        verifier.vocabulary_size,
        pair.device,
    )
    confidence = build_confidence(config.confidence, config.score)
    if config.drafter.model == "parallel":
        assert pair.parallel is not None, "the pair is loaded with a drafter unless the policy is plain"
        model = ParallelModel(pair.parallel, pair.verifier, words, pair.drafter_int8)
        drafting = ParallelRunner(model, verifier, config.engine.graphs, words.tensor(pair.device))
        return ParallelDrafter(drafting, min(most, model_most(config, pair)), confidence, choose, eos_ids)
    assert pair.drafter is not None, "the pair is loaded with a drafter unless the policy is plain"
    shape = (verifier.slots, verifier.max_length, verifier.max_source_length)
    if pair.sound is not None:  # rules that seldom act would be looked up at every token; what breaks them is rejected
        constraints = Constraints(constraints.eos_token_ids)
    runner = load_runner(pair.drafter, *shape, words, pair.drafter_int8, config.engine.graphs)
    share_encoder(runner, verifier)
    if config.drafter.model == "self":
        share_weights(runner, verifier)
    return ModelDrafter(runner, confidence, constraints, choose, eos_ids)
