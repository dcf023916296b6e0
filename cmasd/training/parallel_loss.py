"""What a parallel drafter is taught with: its guesses behind cuts of a row, their loss, and what they would gain.

Keys and values of all places are made at once, as drafting makes them one by one; a mask hides what lies behind a
cut. The earlier tokens of a draft are given to the Markov head as they really are, since a later guess counts only
where the earlier ones were right; with `glance` below 1, only that share of the drafter's wrong guesses is put right
(SpecDec's glancing, arXiv 2203.16487, at the one place where our queries read earlier tokens of the draft).

Loss of a token: ce * cross entropy + tv * total variation to the verifier's distribution + confidence * binary cross
entropy of the predicted acceptance (DSpark, arXiv 2607.05147). A step looks at every place of a row, at the first
token of the draft behind it and at some later ones; their weight exp(-j / decay) is how often position j is chosen,
for queries are independent, so that what counts less need not be computed.

Shapes: B rows, T target tokens, C cuts of a row, K queries, N = B*C, d width, V vocabulary, S shortlist.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from cmasd.models.attention import LayerPairs, TensorReading
from cmasd.models.families import ANY_WORD, output_head
from cmasd.models.parallel_network import ParallelForward, ParallelNetwork, SharedWords
from cmasd.training.listening import Lesson
from cmasd.training.recipe import ParallelRecipe


@dataclass(frozen=True)
class DrafterWords:
    """The verifier's words as the drafter hears and says them."""

    said: SharedWords
    head: Callable[[Tensor], Tensor]
    """The verifier's own, from its hidden states to its logits."""
    ids_S: Tensor
    """(S,) int64"""
    column_V: Tensor
    """(V,) int64: place in the shortlist, -1 for other tokens."""

    @classmethod
    def of(cls, model: PreTrainedModel, ids_S: Tensor) -> "DrafterWords":
        """From a loaded verifier."""
        said = SharedWords.of(model, ids_S)
        column_V = torch.full((len(said.heard_Vd),), -1, device=ids_S.device)
        column_V[ids_S] = torch.arange(len(ids_S), device=ids_S.device)
        return cls(said, output_head(model, ANY_WORD), ids_S, column_V)

    @torch.no_grad()
    def distribution(self, hidden_Nd: Tensor) -> Tensor:
        """(N, S): the verifier's probabilities of the shortlist."""
        return self.head(hidden_Nd[:, None])[:, 0].float().softmax(-1)[:, self.ids_S]


def states(
    network: ParallelNetwork, lesson: Lesson, words: DrafterWords, cuts_BC: Tensor, queries_BCKd: Tensor
) -> Tensor:
    """(B*C, K, d): the drafter's states behind each cut, which is the place of the latest token that is known; behind a
    row's end as behind its last place.
    """
    rows, cuts = cuts_BC.shape
    cuts_BC = cuts_BC.clamp_max(lesson.hidden_BTd.shape[1] - 1)
    forward = ParallelForward.of(network, _plain)
    start_B1d = network.start.expand(rows, 1, -1).to(lesson.hidden_BTd)
    seen_BTd = torch.cat([start_B1d, lesson.hidden_BTd[:, :-1]], dim=1)
    places_BT = torch.arange(seen_BTd.shape[1], device=cuts_BC.device).expand(rows, -1)
    features_BTd = forward.features(seen_BTd, words.said.embed(lesson.tokens_BU[:, :-1], places_BT))
    history = [layer.history.pair(features_BTd) for layer in forward.layers]
    encoded_BSd = lesson.encoded_BSd
    if network.encoder is not None:
        encoded_BSd = network.encoder(lesson.source_BS, attention_mask=lesson.source_mask).last_hidden_state
    heads, source = network.shape.heads, None
    if encoded_BSd is not None:
        assert lesson.source_mask is not None, "what is encoded has lengths"
        source = TensorReading.of(_products(forward.source_pairs(encoded_BSd)).__getitem__, lesson.source_mask, heads)
    unseen_BCT = torch.arange(features_BTd.shape[1], device=cuts_BC.device) > cuts_BC[:, :, None]
    mask_BCT = features_BTd.new_zeros(unseen_BCT.shape).masked_fill_(unseen_BCT, float("-inf"))
    mask_BTT = mask_BCT.repeat_interleave(queries_BCKd.shape[2], dim=1)
    reading = TensorReading.of(_products(history).__getitem__, mask_BTT[:, None], heads)
    latest_BCd = features_BTd.take_along_dim(cuts_BC[:, :, None], dim=1)
    return forward(latest_BCd, queries_BCKd, reading, source).view(rows * cuts, -1, network.shape.width)


def _products(pairs: LayerPairs) -> LayerPairs:
    return [(keys.flatten(0, 1).transpose(1, 2), values.flatten(0, 1)) for keys, values in pairs]


def _plain(*linears: nn.Linear) -> nn.Linear:
    assert len(linears) == 1, "a drafter's products are apart"
    return linears[0]


def choose_steps(count: int, queries: int, decay: float, generator: torch.Generator) -> list[int]:
    """Positions of the draft, at most `count`: the first, and others as often as their weights exp(-j / decay) say."""
    weights_K = torch.exp(-torch.arange(1, queries) / decay)
    others = min(count, queries) - 1
    chosen = torch.multinomial(weights_K, others, generator=generator).tolist() if others else []
    return [0, *(1 + step for step in chosen)]


def loss_of(
    network: ParallelNetwork,
    lesson: Lesson,
    words: DrafterWords,
    steps: list[int],
    weights: ParallelRecipe,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean over the tokens at positions `steps` of the drafts behind every place of every output, in nats.

    `generator` decides which wrong guesses are put right, where `weights.glance` is below 1.
    """
    length, cuts_BC = lesson.hidden_BTd.shape[1], lesson.cuts_BC
    z_NKd = states(network, lesson, words, cuts_BC, network.queries[None, None, steps])
    glances = weights.glance < 1 and network.shape.rank > 0
    drafts = drafted(network, lesson, words, cuts_BC, max(steps)) if glances else []
    within_N = (cuts_BC < lesson.ends_B[:, None]).view(-1)
    number_N = within_N.cumsum(0) - 1  # of a place among all that are said, row by row
    said_MS = _distributions(lesson, words, cuts_BC, within_N) if weights.tv else None
    losses = []
    for query, step in enumerate(steps):
        place_BC = cuts_BC + step
        inside_N = (place_BC < lesson.ends_B[:, None]).view(-1)
        place_BC = place_BC.clamp_max(length - 1)
        before_N = lesson.tokens_BU.gather(1, place_BC).view(-1)
        if glances and step:
            kept_N = torch.rand(len(before_N), generator=generator) >= weights.glance
            before_N = torch.where(kept_N.to(before_N.device), drafts[step - 1][0], before_N)
        label_N = words.column_V[lesson.tokens_BU.gather(1, place_BC + 1)].view(-1)[inside_N]
        target_NS = None if said_MS is None else said_MS[number_N[inside_N] + step]
        z_Nd = z_NKd[:, query][inside_N]
        losses.append(_losses(network, words, z_Nd, before_N[inside_N], label_N, target_NS, weights))
    return torch.cat(losses).mean()


def _distributions(lesson: Lesson, words: DrafterWords, cuts_BC: Tensor, within_N: Tensor) -> Tensor:
    """(M, S) what the verifier thinks of the token behind each place of every output, row by row."""
    cuts_BC = cuts_BC.clamp_max(lesson.hidden_BTd.shape[1] - 1)
    return words.distribution(lesson.hidden_BTd.take_along_dim(cuts_BC[:, :, None], dim=1).flatten(0, 1)[within_N])


def _losses(
    network: ParallelNetwork,
    words: DrafterWords,
    z_Nd: Tensor,
    before_N: Tensor,
    label_N: Tensor,
    target_NS: Tensor | None,
    weights: ParallelRecipe,
) -> Tensor:
    """Of tokens, by the states that say them and the tokens before; `label_N` their columns, `target_NS` what the
    verifier thinks of them.
    """
    said_Nd, features_Nf = speak(network, words, z_Nd, before_N)
    logits_NS: Tensor = words.said.linear(said_Nd)
    log_NS = logits_NS.float().log_softmax(-1)
    # What is not in the shortlist cannot be drafted, so there is no token to learn.
    ce_N = -log_NS.gather(1, label_N.clamp_min(0)[:, None]).squeeze(1) * (label_N >= 0)
    loss_N = weights.ce * ce_N
    if target_NS is not None:
        loss_N = loss_N + weights.tv * (1 - torch.minimum(log_NS.exp(), target_NS).sum(-1))
    if network.shape.has_confidence and weights.confidence:
        right_N = (logits_NS.argmax(-1) == label_N).float()
        judged_N = network.judge(features_Nf.detach()).squeeze(1)
        loss_N = loss_N + weights.confidence * F.binary_cross_entropy_with_logits(judged_N, right_N, reduction="none")
    return loss_N


def speak(network: ParallelNetwork, words: DrafterWords, z_Nd: Tensor, before_N: Tensor) -> tuple[Tensor, Tensor]:
    """What the output layer is given (N, d), and what the confidence head is (N, d + r), with the token before each."""
    if not network.shape.rank:
        return z_Nd, z_Nd
    s_Nr = F.relu(network.context(z_Nd) + network.previous(words.said.heard_Vd[before_N]))
    return z_Nd + network.out(s_Nr), torch.cat([z_Nd, s_Nr], dim=-1)


@torch.no_grad()
def drafted(
    network: ParallelNetwork, lesson: Lesson, words: DrafterWords, cuts_BC: Tensor, count: int
) -> list[tuple[Tensor, Tensor]]:
    """The first `count` tokens (N,) drafted behind each cut, and what the confidence head is given for them (N, f)."""
    z_NKd = states(network, lesson, words, cuts_BC, network.queries[None, None, :count])
    before_N, drafts = lesson.tokens_BU.gather(1, cuts_BC.clamp_max(lesson.tokens_BU.shape[1] - 1)).view(-1), []
    for j in range(count):
        said_Nd, features_Nf = speak(network, words, z_NKd[:, j], before_N)
        before_N = words.ids_S[words.said.linear(said_Nd).argmax(-1)]
        drafts.append((before_N, features_Nf))
    return drafts


@torch.no_grad()
def accepted(network: ParallelNetwork, lesson: Lesson, words: DrafterWords) -> tuple[Tensor, Tensor]:
    """(B, C) how many tokens greedy verification accepts behind each cut, and (B, C, K) the predicted acceptance.

    Exact, since the verifier's output is known: no decoding is needed to tell what a drafter would have gained.
    """
    rows, length = lesson.hidden_BTd.shape[:2]
    cuts_BC = lesson.cuts_BC
    right, judged = [], []
    drafts = drafted(network, lesson, words, cuts_BC, network.shape.queries)
    for j, (token_N, features_Nf) in enumerate(drafts):
        place_BC = cuts_BC + 1 + j
        label_BC = lesson.tokens_BU.gather(1, place_BC.clamp_max(length))
        right.append((token_N.view(rows, -1) == label_BC) & (place_BC <= lesson.ends_B[:, None]))
        if network.shape.has_confidence:
            judged.append(network.judge(features_Nf).squeeze(1).sigmoid().view(rows, -1))
    chain_BCK = torch.stack(right, -1).long().cumprod(-1)
    return chain_BCK.sum(-1), torch.stack(judged, -1) if judged else torch.full_like(chain_BCK, 0.5, dtype=torch.float)


def tokens_per_iteration(accepted_BC: Tensor, lesson: Lesson, drafted: int) -> tuple[int, int]:
    """Output tokens of the batch, and the iterations that they take with drafts of `drafted` tokens."""
    tokens = iterations = 0
    for row, (first, end) in enumerate(zip(lesson.first_B.tolist(), lesson.ends_B.tolist(), strict=True)):
        tokens += end - first
        at, accepted_C = first, accepted_BC[row].tolist()
        while at < end:
            at += min(accepted_C[at - first], drafted, end - at - 1) + 1
            iterations += 1
    return tokens, iterations
