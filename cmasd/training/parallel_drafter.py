"""Teaches a parallel drafter to say what its verifier says next: the task, the network it begins with, its folder.

How it is taught is in `parallel_loss`, what it learns from in `listening`.
"""

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from cmasd.checkpoints.by_name import load_model, vocabulary_size
from cmasd.checkpoints.parallel_folder import save_parallel
from cmasd.models.bart import paired
from cmasd.models.parallel_network import ACTIVATIONS, ParallelNetwork
from cmasd.runner.load import parallel_shape
from cmasd.training.corpus import Corpus, frequent, write_shortlist
from cmasd.training.heard_corpus import HeardCorpus, Lessons
from cmasd.training.listening import Lesson, listen
from cmasd.training.parallel_loss import DrafterWords, accepted, choose_steps, loss_of, tokens_per_iteration
from cmasd.training.recipe import ParallelRecipe, Recipe


class ParallelTask:
    """Say what the verifier said, several tokens at once."""

    def __init__(
        self,
        network: ParallelNetwork,
        verifier: PreTrainedModel,
        corpus: Corpus,
        recipe: ParallelRecipe,
        ids: list[int],
        heard: HeardCorpus | None = None,
    ) -> None:
        """`ids` are the tokens that are drafted; `heard`: where sources are recordings, its corpus is `corpus`."""
        self._lessons = None if heard is None else Lessons(verifier, heard)
        self.model = network
        self.losses_per_batch = recipe.losses_per_batch
        self._verifier = verifier
        self._corpus = corpus
        self._recipe = recipe
        self._words = DrafterWords.of(verifier, torch.tensor(sorted(ids), device=verifier.device))

    def prepare(self, rows: NDArray[np.int64]) -> Lesson:
        """The verifier reads its own outputs."""
        if self._lessons is not None:
            return self._lessons.of(rows.tolist())
        sources, targets = self._corpus.source.lists(rows), self._corpus.target.lists(rows)
        return listen(self._verifier, sources, targets)

    def loss(self, batch: Lesson, seed: int) -> Tensor:
        """See `Task.loss`."""
        recipe, generator = self._recipe, torch.Generator().manual_seed(seed)
        steps = choose_steps(recipe.positions, self.model.shape.queries, recipe.decay, generator)
        return loss_of(self.model, batch, self._words, steps, recipe, generator)

    def gauge(self, batch: Lesson) -> tuple[str, float]:
        """Tokens per iteration on this batch, with the longest drafts."""
        accepted_BC, _ = accepted(self.model, batch, self._words)
        tokens, iterations = tokens_per_iteration(accepted_BC, batch, self.model.shape.queries)
        return "tokens per iteration", tokens / iterations


def build_network(recipe: ParallelRecipe, verifier: PreTrainedModel) -> ParallelNetwork:
    """A drafter for this verifier, at random but for the layers that it can be given."""
    begins_with = verifier if recipe.start is None else load_model(recipe.start, "float32", "cpu")
    shape = replace(
        parallel_shape(verifier),
        queries=recipe.queries,
        layers=recipe.layers,
        feed_forward=recipe.feed_forward,
        activation=activation_of(begins_with),
        rank=recipe.rank,
        has_confidence=recipe.has_confidence,
        own_encoder=recipe.own_encoder,
        norm_first=getattr(verifier.get_decoder(), "layer_norm", None) is not None,
    )
    encoder: Any = None
    if shape.own_encoder:
        encoder = copy.deepcopy(verifier.get_encoder())
        for name, weight in encoder.named_parameters():
            weight.requires_grad_(not name.startswith("embed_"))
    network = ParallelNetwork(shape, encoder)
    copy_layers(network, begins_with)
    return network.to(verifier.device)


def activation_of(model: PreTrainedModel) -> str:
    """Of the model's decoder layers, where a parallel drafter's can have it."""
    given = [getattr(layer, "activation_fn", None) for layer in getattr(model.get_decoder(), "layers", [])]
    return next((name for name, kind in ACTIVATIONS.items() if given and isinstance(given[-1], kind)), "relu")


def drafted_ids(recipe: ParallelRecipe, corpus: Corpus, verifier: PreTrainedModel) -> list[int]:
    """The shortlist, most frequent first; the end of sequence is in it."""
    known = vocabulary_size(verifier.config)
    if recipe.shortlist is None:
        return list(range(known))
    ids, eos = frequent(corpus, known)[: recipe.shortlist], verifier.config.eos_token_id
    return ids if eos in ids else [eos, *ids[:-1]]


def export_parallel(
    network: ParallelNetwork, corpus: Corpus, ids: list[int], recipe: Recipe, dtype: torch.dtype
) -> None:
    """Write what `drafter.kind: parallel` loads; `ids` are those of `drafted_ids`."""
    folder = Path(recipe.output)
    save_parallel(network, folder, dtype)
    write_shortlist(corpus, folder, ids)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")


def copy_layers(network: ParallelNetwork, model: PreTrainedModel) -> bool:
    """Begin with the model's last decoder layers, where the shapes agree (BART and its kin); returns whether."""
    given = list(getattr(model.get_decoder(), "layers", []))
    theirs = [_with_pairs(layer) for layer in given[max(0, len(given) - network.shape.layers) :]]
    mine = [layer.state_dict() for layer in network.layers]
    if len(theirs) < len(mine) or any(
        name not in their or their[name].shape != weight.shape
        for my, their in zip(mine, theirs, strict=True)
        for name, weight in my.items()
    ):
        return False
    for layer, my, their in zip(network.layers, mine, theirs, strict=True):
        layer.load_state_dict({name: their[name].float() for name in my})
    return True


def _with_pairs(layer: Any) -> dict[str, Tensor]:
    """Weights of a decoder layer, with keys and values in one product as a parallel drafter has them."""
    weights: dict[str, Tensor] = layer.state_dict()
    for name in ("self_attn", "encoder_attn"):
        attention = getattr(layer, name, None)
        if hasattr(attention, "num_heads") and hasattr(attention, "k_proj"):
            pairs = paired(attention).state_dict()
            weights |= {f"{name}.kv_proj.{part}": weight for part, weight in pairs.items()}
    return weights
