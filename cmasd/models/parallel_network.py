"""A drafter of one pass: k queries over what the verifier made of the text so far.

A known place of the row is one feature: the verifier's hidden state that said its token, fused with the token (EAGLE,
arXiv 2401.15077). Each layer has keys and values of its own for all places up to the latest, and for the verifier's
encoder states: no second encoder, no copy of the embeddings. A query is the latest place's feature plus a vector of
its own position in the draft. Queries do not read each other: whoever wants fewer tokens computes fewer queries and
gets the same ones. What one token of the draft means for the next is the Markov head's part (DSpark, arXiv
2607.05147, with the verifier's embeddings in it):

    logits_j = E z_j + E Out relu(Context z_j + Previous e(x_{j-1}))

Shapes: B rows, T places, C cuts of a row (1 when drafting), K queries, N = B*C*K, d width of the verifier, H heads,
D head width, r rank, L places read, S source length or shortlist, G = B*H.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUActivation

from cmasd.kernels import Bits
from cmasd.models.attention import Attend, LayerPairs
from cmasd.models.bart import CrossAttention, Embedding, FeedForward, Make, Sublayer, norm_of
from cmasd.models.dense import Dense, dense, linear_of
from cmasd.models.families import ANY_WORD, Words, family_of, output_layer
from cmasd.models.packed import weight_of

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": GELUActivation}
"""Of the layers, by name."""


@dataclass(frozen=True)
class ParallelShape:
    """Everything that decides the names and sizes of the weights."""

    width: int
    """d, of the verifier's hidden states."""
    heads: int
    """H"""
    head_width: int
    """D"""
    has_source: bool
    """Whether the verifier has an encoder."""
    queries: int = 8
    """K, most tokens drafted in one pass."""
    layers: int = 1
    feed_forward: int = 512
    activation: str = "relu"
    """One of `ACTIVATIONS`, that of the layers with which the weights begin."""
    norm_first: bool = False
    """Norms before the residual branches, or after, as in the verifier that the weights begin with."""
    rank: int = 64
    """r, of the Markov head; 0: none."""
    has_confidence: bool = True
    """Whether a head predicts acceptance."""
    own_encoder: bool = False
    """Whether it reads the source with an encoder of its own, built as the verifier's, or what that one made of it."""


class _Attention(nn.Module):
    def __init__(self, shape: ParallelShape) -> None:
        super().__init__()
        inner = shape.heads * shape.head_width
        self.q_proj = nn.Linear(shape.width, inner)
        self.kv_proj = nn.Linear(shape.width, 2 * inner)
        """Outputs are (head, key | value, D)."""
        self.out_proj = nn.Linear(inner, shape.width)


class _Layer(nn.Module):
    """Names as in a decoder layer of BART, so that one can be copied."""

    def __init__(self, shape: ParallelShape) -> None:
        super().__init__()
        self.self_attn = _Attention(shape)
        self.self_attn_layer_norm = nn.LayerNorm(shape.width)
        if shape.has_source:
            self.encoder_attn = _Attention(shape)
            self.encoder_attn_layer_norm = nn.LayerNorm(shape.width)
        self.fc1 = nn.Linear(shape.width, shape.feed_forward)
        self.activation_fn = ACTIVATIONS[shape.activation]()
        self.fc2 = nn.Linear(shape.feed_forward, shape.width)
        self.final_layer_norm = nn.LayerNorm(shape.width)


class ParallelNetwork(nn.Module):
    """The weights."""

    def __init__(self, shape: ParallelShape, encoder: nn.Module | None = None) -> None:
        """`encoder` of transformers, where the shape asks for one."""
        super().__init__()
        assert shape.own_encoder == (encoder is not None), "an encoder of its own is given, another is not"
        self.shape = shape
        self.encoder = encoder
        width = shape.width
        self.start = nn.Parameter(torch.zeros(width))
        """In place of the hidden state that said the first token."""
        self.queries = nn.Parameter(torch.randn(shape.queries, width) * 0.1)
        self.fuse = nn.Linear(2 * width, width)
        with torch.no_grad():  # the first query begins as the token that it follows, without the hidden state
            self.queries[0] = 0
            self.fuse.weight.copy_(torch.eye(2 * width)[width:])
            self.fuse.bias.zero_()
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        if shape.rank:
            self.context = nn.Linear(width, shape.rank)
            self.previous = nn.Linear(width, shape.rank, bias=False)
            self.out = nn.Linear(shape.rank, width, bias=False)
            nn.init.zeros_(self.out.weight)
        if shape.has_confidence:
            self.judge = nn.Linear(width + shape.rank, 1)


@dataclass(frozen=True)
class LayerForward:
    """One layer of it."""

    history: CrossAttention
    source: CrossAttention | None
    feed_forward: FeedForward

    @classmethod
    def of(cls, layer: _Layer, shape: ParallelShape, make: Make) -> "LayerForward":
        first = shape.norm_first

        def reading(attention: _Attention, norm: nn.LayerNorm) -> CrossAttention:
            sublayer = Sublayer.of(make(attention.out_proj), norm_of(norm), first)
            return CrossAttention(shape.heads, make(attention.q_proj), make(attention.kv_proj), sublayer)

        history = reading(layer.self_attn, layer.self_attn_layer_norm)
        source = None
        if shape.has_source:
            source = reading(layer.encoder_attn, layer.encoder_attn_layer_norm)
        return cls(history, source, FeedForward.of(layer, first, make))


@dataclass(frozen=True)
class ParallelForward:
    """The computation, over weights stored as `make` wants them: as they are to train, packed to draft."""

    shape: ParallelShape
    fuse: Dense
    layers: list[LayerForward]

    @classmethod
    def of(cls, network: ParallelNetwork, make: Make) -> "ParallelForward":
        """`make` turns an `nn.Linear` into a `Dense`."""
        layers = [layer for layer in network.layers if isinstance(layer, _Layer)]
        return cls(network.shape, make(network.fuse), [LayerForward.of(one, network.shape, make) for one in layers])

    def features(self, seen_BTd: Tensor, heard_BTd: Tensor) -> Tensor:
        """(B, T, d) of places: `seen_BTd` the hidden states that said their tokens (`network.start` where none did),
        `heard_BTd` the tokens themselves (`SharedWords.embed`).
        """
        rows, places, width = seen_BTd.shape
        joined_BTe = torch.cat([F.layer_norm(seen_BTd, (width,)), heard_BTd], dim=-1)
        return self.fuse(joined_BTe.view(rows * places, 2 * width)).view(rows, places, width)

    def source_pairs(self, encoded_BSd: Tensor) -> LayerPairs:
        """Every layer's keys and values (B, H, S, D) of the sources; none without an encoder."""
        return [layer.source.pair(encoded_BSd) for layer in self.layers if layer.source is not None]

    def __call__(self, features_BCd: Tensor, queries_BCKd: Tensor, history: Attend, source: Attend | None) -> Tensor:
        """(B, C*K, d) states of `network.queries`, or of some of them, behind each cut, whose latest place has these
        features; the queries' B and C may be 1. `history` attends to the places of each row, `source` to the sources.
        """
        rows, _, width = features_BCd.shape
        x_Nd = (features_BCd[:, :, None] + queries_BCKd).view(-1, width)
        for i, layer in enumerate(self.layers):
            x_Nd = layer.history(x_Nd, partial(history, i))
            if layer.source is not None:
                assert source is not None, "there is an encoder"
                x_Nd = layer.source(x_Nd, partial(source, i))
            x_Nd = layer.feed_forward(x_Nd)
        return x_Nd.view(rows, -1, width)


class States:
    """One pass: what there is to say of each row's next K tokens."""

    def __init__(self, model: "ParallelModel", z_BKd: Tensor) -> None:
        self._model = model
        rows, queries, width = z_BKd.shape
        z_Nd = z_BKd.reshape(-1, width)
        self._base_BKS = model.head(z_Nd).view(rows, queries, -1)
        self._context_BKr = None if model.context is None else model.context(z_Nd).view(rows, queries, -1)
        self._z_BKd = z_BKd
        self._steps: list[Tensor] = []

    def logits(self, j: int, latest_B: Tensor) -> Tensor:
        """(B, S) of token j of the draft, given the one before."""
        if self._context_BKr is None:
            return self._base_BKS[:, j]
        s_Br = F.relu(self._context_BKr[:, j] + F.embedding(latest_B, self._model.previous_Vr))
        self._steps.append(s_Br)
        return torch.addmm(self._base_BKS[:, j], s_Br, self._model.out_rS)

    def branch(self, j: int, rows_F: Tensor, latest_F: Tensor) -> tuple[Tensor, Tensor | None]:
        """(F, S) of token j of some rows' drafts, given each token before; and acceptance (F,) as in `judged`."""
        logits_FS, features_Fe = self._base_BKS[rows_F, j], self._z_BKd[rows_F, j]
        if self._context_BKr is not None:
            s_Fr = F.relu(self._context_BKr[rows_F, j] + F.embedding(latest_F, self._model.previous_Vr))
            logits_FS = torch.addmm(logits_FS, s_Fr, self._model.out_rS)
            features_Fe = torch.cat([features_Fe, s_Fr], dim=-1)
        judge = self._model.judge
        return logits_FS, None if judge is None else torch.sigmoid(judge(features_Fe)).view(-1)

    def judged(self) -> Tensor | None:
        """(B, K) predicted acceptance, of all tokens whose logits were asked for; None without a confidence head."""
        if self._model.judge is None:
            return None
        features = self._z_BKd
        if self._steps:
            features = torch.cat([features, torch.stack(self._steps, 1)], dim=-1)
        return torch.sigmoid(self._model.judge(features.flatten(0, 1))).view(features.shape[:2])


class ParallelModel:
    """A network with its weights stored for drafting, and the verifier's words in it."""

    def __init__(self, network: ParallelNetwork, verifier: Any, words: Words = ANY_WORD, bits: Bits = None) -> None:
        """`words` says which of the verifier's tokens are drafted."""
        make = partial(dense, bits=bits)
        said = SharedWords.of(verifier, words.tensor(network.start.device))
        self.shape = network.shape
        self.encoder = network.encoder
        self.head = make(said.linear)
        self.forward = ParallelForward.of(network, make)
        self.start_d = network.start.detach()
        self.queries_Kd = network.queries.detach()
        self.embedding = said.embedding
        has_markov = network.shape.rank > 0
        self.context = make(network.context) if has_markov else None
        self.judge_linear = network.judge if network.shape.has_confidence else None
        self.judge = None if self.judge_linear is None else dense(self.judge_linear)
        if has_markov:
            self.previous_Vr = F.linear(said.heard_Vd, network.previous.weight)
            self.out_rS = (said.linear.weight @ network.out.weight).T.contiguous()

    def features(self, seen_BTd: Tensor, tokens_BT: Tensor, places_BT: Tensor) -> Tensor:
        """(B, T, d), see `ParallelForward.features`."""
        return self.forward.features(seen_BTd, self.embedding(tokens_BT, places_BT))

    def __call__(self, features_Bd: Tensor, queries: int, history: Attend, source: Attend | None) -> States:
        """One pass behind each row's latest place, which has these features; see `ParallelForward`."""
        queries_11Kd = self.queries_Kd[None, None, :queries]
        return States(self, self.forward(features_Bd[:, None], queries_11Kd, history, source))


@dataclass(frozen=True)
class SharedWords:
    """The verifier's words: how a drafter hears them, and how it says them."""

    heard_Vd: Tensor
    """Input embeddings, each normalised, so that their scale does not matter."""
    embedding: Embedding
    """Tokens and their places to what the verifier's decoder begins with; where places are no part of that, tokens."""
    linear: nn.Linear
    """The output layer, of the shortlist where there is one."""

    @classmethod
    def of(cls, model: Any, shortlist_S: Tensor | None) -> "SharedWords":
        """From a loaded verifier, in its precision."""
        weight_Vd = weight_of(output_layer(model))
        bias: Tensor | None = getattr(model, "final_logits_bias", None)
        bias_V = None if bias is None or not bool(bias.any()) else bias.detach().view(-1)
        heard_Vd = weight_of(model.get_input_embeddings())
        heard_Vd = F.layer_norm(heard_Vd, heard_Vd.shape[-1:])
        if shortlist_S is not None:
            weight_Vd, bias_V = weight_Vd[shortlist_S], None if bias_V is None else bias_V[shortlist_S]
        return cls(heard_Vd, _embedding_of(model, heard_Vd), linear_of(weight_Vd, bias_V))

    @torch.no_grad()
    def embed(self, tokens_BT: Tensor, places_BT: Tensor) -> Tensor:
        """(B, T, d)"""
        return self.embedding(tokens_BT, places_BT)


@torch.no_grad()
def _embedding_of(model: Any, heard_Vd: Tensor) -> Embedding:
    family = family_of(model)
    if family.is_bart:
        return Embedding.of(model.get_decoder(), getattr(model.config, str(family.positions_key)))
    return Embedding(heard_Vd, heard_Vd.new_zeros(1, heard_Vd.shape[1]), padding=None, norm=None)
