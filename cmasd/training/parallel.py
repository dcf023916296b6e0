"""Teaches a parallel drafter to say what its verifier says next.

The verifier runs over its own output once, frozen; a few cuts of each row are chosen at random, and behind each the
drafter guesses the next K tokens at once. The earlier tokens of a draft are given to the Markov head as they really
are, since a later guess counts only where the earlier ones were right.

Loss of a token: ce * cross entropy + tv * total variation to the verifier's distribution + confidence * binary cross
entropy of the predicted acceptance (DSpark, arXiv 2607.05147). Its weight exp(-j / decay) for position j of the draft
is how often it is looked at: queries are independent, so what counts less need not be computed.

Shapes: B rows, T target tokens, C cuts of a row, K queries, N = B*C, d width, V vocabulary, S shortlist.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from cmasd.runner.base import LayerPairs, Memory
from cmasd.runner.families import ANY_WORD, output_head
from cmasd.runner.load import parallel_shape
from cmasd.runner.masks import source_mask
from cmasd.runner.models import vocabulary_size
from cmasd.runner.parallel import ParallelForward, ParallelNetwork, Said
from cmasd.runner.parallel_folder import save_parallel
from cmasd.runner.runners import padded
from cmasd.training.corpus import Corpus, frequent, write_shortlist
from cmasd.training.recipe import ParallelRecipe, Recipe
from cmasd.training.trainer import Batch


class ParallelTask:
    """Say what the verifier said, several tokens at once."""

    def __init__(
        self,
        network: ParallelNetwork,
        verifier: PreTrainedModel,
        corpus: Corpus,
        recipe: ParallelRecipe,
        ids: list[int],
    ) -> None:
        """`ids` are the tokens that are drafted."""
        self.model = network
        self.losses_per_batch = recipe.losses_per_batch
        self._verifier = verifier
        self._corpus = corpus
        self._recipe = recipe
        self._words = Words.of(verifier, torch.tensor(sorted(ids), device=verifier.device))

    def prepare(self, rows: NDArray[np.int64]) -> "Lesson":
        """The verifier reads its own outputs."""
        sources, targets = self._corpus.source.lists(rows), self._corpus.target.lists(rows)
        return listen(self._verifier, sources, targets, self.model.shape.layers)

    def loss(self, batch: Batch, seed: int) -> Tensor:
        """See `Task.loss`."""
        assert isinstance(batch, Lesson), "made by prepare"
        recipe, generator = self._recipe, torch.Generator().manual_seed(seed)
        chosen = choose_cuts(batch, recipe.cuts, self.model.shape.queries, recipe.decay, generator)
        return loss_of(self.model, batch, self._words, *chosen, recipe)

    def gauge(self, batch: Batch) -> tuple[str, float]:
        """Tokens per iteration on this batch, with the longest drafts."""
        assert isinstance(batch, Lesson), "made by prepare"
        accepted_BT, _ = accepted(self.model, batch, self._words)
        tokens, iterations = tokens_per_iteration(accepted_BT, batch, self.model.shape.queries)
        return "tokens per iteration", tokens / iterations


@dataclass(frozen=True)
class Lesson:
    """What the verifier did with a batch of its own outputs."""

    tokens_BU: Tensor
    """(B, T + 1) decoder tokens: the start token, or the prompt, and then the output."""
    first_B: Tensor
    """(B,) place of the last token that was not generated: the first cut."""
    ends_B: Tensor
    """(B,) place of the last generated token: behind every cut."""
    hidden_BTd: Tensor
    """(B, T, d): after token t, from which token t + 1 was said."""
    history: LayerPairs
    """Per layer that the drafter reads: keys (G, D, T), values (G, T, D)."""
    sources: LayerPairs
    source_mask: Tensor | None
    """(B, 1, 1, S)"""

    @property
    def tokens(self) -> int:
        """Of the outputs."""
        return int((self.ends_B - self.first_B).sum())


@torch.no_grad()
def listen(model: PreTrainedModel, sources: list[list[int]], targets: list[list[int]], layers: int) -> Lesson:
    """Run the verifier over given outputs; the last `layers` of its caches are kept."""
    verifier: Any = model
    device, dtype = model.device, model.dtype
    filler = verifier.config.pad_token_id or 0
    encoder_decoder = bool(verifier.config.is_encoder_decoder)
    prompts = [[verifier.config.decoder_start_token_id]] * len(sources) if encoder_decoder else sources
    tokens_BU, lengths_B = padded([a + b for a, b in zip(prompts, targets, strict=True)], filler, device)
    first_B = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
    inputs_BT = tokens_BU[:, :-1]
    real_BT = torch.arange(inputs_BT.shape[1], device=device) < lengths_B[:, None]
    cache: Any = DynamicCache()  # without a configuration, so that no layer forgets what left its window
    if not encoder_decoder:
        out = verifier.base_model(inputs_BT, attention_mask=real_BT.long(), past_key_values=cache, use_cache=True)
        history = [_products(layer) for layer in cache.layers[-layers:]]
        return Lesson(tokens_BU, first_B, lengths_B - 1, out.last_hidden_state, history, [], None)
    ids_BS, source_lengths_B = padded(sources, filler, device)
    read_BS = (torch.arange(ids_BS.shape[1], device=device) < source_lengths_B[:, None]).long()
    both: Any = EncoderDecoderCache(cache, DynamicCache())
    out = verifier.get_decoder()(
        input_ids=inputs_BT,
        encoder_hidden_states=verifier.get_encoder()(ids_BS, attention_mask=read_BS).last_hidden_state,
        encoder_attention_mask=read_BS,
        past_key_values=both,
        use_cache=True,
    )
    return Lesson(
        tokens_BU,
        first_B,
        lengths_B - 1,
        out.last_hidden_state,
        [_products(layer) for layer in both.self_attention_cache.layers[-layers:]],
        [_products(layer) for layer in both.cross_attention_cache.layers[-layers:]],
        source_mask(source_lengths_B, ids_BS.shape[1], dtype),
    )


def _products(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.keys.flatten(0, 1).transpose(1, 2), layer.values.flatten(0, 1)


@dataclass(frozen=True)
class Words:
    """The verifier's words as the drafter hears and says them."""

    said: Said
    head: Callable[[Tensor], Tensor]
    """The verifier's own, from its hidden states to its logits."""
    ids_S: Tensor
    """(S,) int64"""
    column_V: Tensor
    """(V,) int64: place in the shortlist, -1 for other tokens."""

    @classmethod
    def of(cls, model: PreTrainedModel, ids_S: Tensor) -> "Words":
        """From a loaded verifier."""
        said = Said.of(model, ids_S)
        column_V = torch.full((len(said.heard_Vd),), -1, device=ids_S.device)
        column_V[ids_S] = torch.arange(len(ids_S), device=ids_S.device)
        return cls(said, output_head(model, ANY_WORD), ids_S, column_V)

    @torch.no_grad()
    def distribution(self, hidden_Nd: Tensor) -> Tensor:
        """(N, S): the verifier's probabilities of the shortlist."""
        return self.head(hidden_Nd[:, None])[:, 0].float().softmax(-1)[:, self.ids_S]


def states(network: ParallelNetwork, lesson: Lesson, words: Words, cuts_BC: Tensor, queries_BCKd: Tensor) -> Tensor:
    """(B*C, K, d): the drafter's states behind each cut, which is the place of the latest token that is known."""
    rows, cuts = cuts_BC.shape
    begun_BC1 = cuts_BC[:, :, None] > 0
    seen_BCd = lesson.hidden_BTd.take_along_dim((cuts_BC - 1).clamp_min(0)[:, :, None], dim=1)
    seen_BCd = torch.where(begun_BC1, seen_BCd, network.start)
    latest_BCd = words.said.heard_Vd[lesson.tokens_BU.gather(1, cuts_BC)]
    place_T = torch.arange(lesson.hidden_BTd.shape[1], device=cuts_BC.device)
    # A row with nothing cached sees the first key all the same; what it read there is taken away again.
    unseen_BCT = place_T >= cuts_BC.clamp_min(1)[:, :, None]
    mask_BCT = torch.zeros(unseen_BCT.shape, dtype=seen_BCd.dtype, device=cuts_BC.device)
    mask_BCT.masked_fill_(unseen_BCT, float("-inf"))
    memory = Memory(lesson.history, mask_BCT[:, None], lesson.sources, lesson.source_mask)
    forward = ParallelForward.of(network, _plain)
    begun_BC = begun_BC1.squeeze(2).to(seen_BCd.dtype)
    return forward(seen_BCd, latest_BCd, begun_BC, memory, queries_BCKd).view(rows * cuts, -1, network.shape.width)


def _plain(*linears: nn.Linear) -> nn.Linear:
    assert len(linears) == 1, "a drafter's products are apart"
    return linears[0]


def choose_cuts(
    lesson: Lesson, cuts: int, queries: int, decay: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(B, C) cuts at random, and for each the position of one draft token (B, C): as often as its weight says."""
    first_B1, ends_B1 = lesson.first_B[:, None], lesson.ends_B[:, None]
    shape = (len(first_B1), cuts)
    chosen_BC = torch.rand(shape, generator=generator).to(first_B1.device)
    weights_K = torch.exp(-torch.arange(queries) / decay)
    steps_N = torch.multinomial(weights_K, cuts * len(first_B1), replacement=True, generator=generator)
    return first_B1 + (chosen_BC * (ends_B1 - first_B1)).long(), steps_N.view(shape).to(first_B1.device)


def loss_of(
    network: ParallelNetwork,
    lesson: Lesson,
    words: Words,
    cuts_BC: Tensor,
    steps_BC: Tensor,
    weights: ParallelRecipe,
) -> Tensor:
    """Mean over the tokens `steps_BC` behind `cuts_BC` that lie inside their rows, in nats."""
    z_NKd = states(network, lesson, words, cuts_BC, network.queries[steps_BC][:, :, None])
    place_BC = cuts_BC + steps_BC
    inside_N = (place_BC < lesson.ends_B[:, None]).view(-1)
    place_BC = place_BC.clamp_max(lesson.hidden_BTd.shape[1] - 1)
    z_Nd = z_NKd[:, 0][inside_N]
    label_N = words.column_V[lesson.tokens_BU.gather(1, place_BC + 1)].view(-1)[inside_N]
    before_N = lesson.tokens_BU.gather(1, place_BC).view(-1)[inside_N]
    said_Nd, features_Nf = speak(network, words, z_Nd, before_N)
    logits_NS: Tensor = words.said.linear(said_Nd)
    log_NS = logits_NS.float().log_softmax(-1)
    # What is not in the shortlist cannot be drafted, so there is no token to learn.
    ce_N = -log_NS.gather(1, label_N.clamp_min(0)[:, None]).squeeze(1) * (label_N >= 0)
    loss_N = weights.ce * ce_N
    if weights.tv:
        hidden_Nd = lesson.hidden_BTd.take_along_dim(place_BC[:, :, None], dim=1).flatten(0, 1)[inside_N]
        target_NS = words.distribution(hidden_Nd)
        shared_N = torch.minimum(log_NS.exp(), target_NS).sum(-1)
        loss_N = loss_N + weights.tv * (1 - shared_N)
    if network.shape.has_confidence and weights.confidence:
        right_N = (logits_NS.argmax(-1) == label_N).float()
        judged_N = network.judge(features_Nf.detach()).squeeze(1)
        loss_N = loss_N + weights.confidence * F.binary_cross_entropy_with_logits(judged_N, right_N, reduction="none")
    return loss_N.mean()


def speak(network: ParallelNetwork, words: Words, z_Nd: Tensor, before_N: Tensor) -> tuple[Tensor, Tensor]:
    """What the output layer is given (N, d), and what the confidence head is (N, d + r), with the token before each."""
    if not network.shape.rank:
        return z_Nd, z_Nd
    s_Nr = F.relu(network.context(z_Nd) + network.previous(words.said.heard_Vd[before_N]))
    return z_Nd + network.out(s_Nr), torch.cat([z_Nd, s_Nr], dim=-1)


@torch.no_grad()
def accepted(network: ParallelNetwork, lesson: Lesson, words: Words) -> tuple[Tensor, Tensor]:
    """(B, T) how many tokens greedy verification accepts behind each place, and (B, T, K) the predicted acceptance.

    Exact, since the verifier's output is known: no decoding is needed to tell what a drafter would have gained.
    """
    rows, length = lesson.hidden_BTd.shape[:2]
    cuts_BC = torch.arange(length, device=lesson.ends_B.device).expand(rows, -1)
    z_NKd = states(network, lesson, words, cuts_BC, network.queries[None, None])
    before_N = lesson.tokens_BU[:, :-1].reshape(-1)
    right, judged = [], []
    for j in range(network.shape.queries):
        said_Nd, features_Nf = speak(network, words, z_NKd[:, j], before_N)
        before_N = words.ids_S[words.said.linear(said_Nd).argmax(-1)]
        place_BC = cuts_BC + 1 + j
        label_BC = lesson.tokens_BU.gather(1, place_BC.clamp_max(length))
        right.append((before_N.view(rows, -1) == label_BC) & (place_BC <= lesson.ends_B[:, None]))
        if network.shape.has_confidence:
            judged.append(network.judge(features_Nf).squeeze(1).sigmoid().view(rows, -1))
    chain_BCK = torch.stack(right, -1).long().cumprod(-1)
    return chain_BCK.sum(-1), torch.stack(judged, -1) if judged else torch.full_like(chain_BCK, 0.5, dtype=torch.float)


def tokens_per_iteration(accepted_BT: Tensor, lesson: Lesson, drafted: int) -> tuple[int, int]:
    """Output tokens of the batch, and the iterations that they take with drafts of `drafted` tokens."""
    tokens = iterations = 0
    for row, (first, end) in enumerate(zip(lesson.first_B.tolist(), lesson.ends_B.tolist(), strict=True)):
        tokens += end - first
        at, accepted_T = first, accepted_BT[row].tolist()
        while at < end:
            at += min(accepted_T[at], drafted, end - at - 1) + 1
            iterations += 1
    return tokens, iterations


def build_network(recipe: ParallelRecipe, verifier: PreTrainedModel) -> ParallelNetwork:
    """A drafter for this verifier, at random but for the layers that it can be given."""
    shape = replace(
        parallel_shape(verifier),
        queries=recipe.queries,
        layers=recipe.layers,
        feed_forward=recipe.feed_forward,
        rank=recipe.rank,
        has_confidence=recipe.has_confidence,
        norm_first=getattr(verifier.get_decoder(), "layer_norm", None) is not None,
    )
    network = ParallelNetwork(shape)
    copy_layers(network, verifier)
    return network.to(verifier.device)


def drafted_ids(recipe: ParallelRecipe, corpus: Corpus, verifier: PreTrainedModel) -> list[int]:
    """The shortlist, most frequent first; the end of sequence is in it."""
    if recipe.shortlist is None:
        return list(range(vocabulary_size(verifier.config)))
    ids, eos = frequent(corpus), verifier.config.eos_token_id
    return ids[: recipe.shortlist] if eos in ids[: recipe.shortlist] else [eos, *ids[: recipe.shortlist - 1]]


def export_parallel(network: ParallelNetwork, corpus: Corpus, recipe: Recipe, dtype: torch.dtype) -> None:
    """Write what `drafter.kind: parallel` loads."""
    folder = Path(recipe.output)
    save_parallel(network, folder, dtype)
    write_shortlist(corpus, folder)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")


def copy_layers(network: ParallelNetwork, model: PreTrainedModel) -> bool:
    """Begin with the verifier's last decoder layers, where the shapes agree (BART and its kin); returns whether."""
    verifier: Any = model
    layers = getattr(getattr(verifier.get_decoder(), "layers", None), "__getitem__", None)
    if layers is None:
        return False
    given = list(verifier.get_decoder().layers)[-network.shape.layers :]
    own = [layer.state_dict() for layer in network.layers]
    theirs = [layer.state_dict() for layer in given]
    if any(
        name not in their or their[name].shape != weight.shape
        for mine, their in zip(own, theirs, strict=True)
        for name, weight in mine.items()
    ):
        return False
    for layer, mine, their in zip(network.layers, own, theirs, strict=True):
        layer.load_state_dict({name: their[name].float() for name in mine})
    return True
