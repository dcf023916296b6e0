"""A drafter of one pass: k queries that look through the verifier's eyes.

Each query is the verifier's last hidden state fused with the latest token, plus a vector of its own position in the
draft; it reads the keys and values that the verifier's last layers have already cached, of the output so far and of
the source. So there is no second encoder, no copy of the embeddings, no cache to fill, move or roll back. Queries do
not read each other: whoever wants fewer tokens computes fewer queries and gets the same ones. What one token of the
draft means for the next is the Markov head's part (DSpark, arXiv 2607.05147, with the verifier's embeddings in it):

    logits_j = E z_j + E Out relu(Context z_j + Previous e(x_{j-1}))

Shapes: B rows, C cuts of a row (1 when drafting), K queries, N = B*C*K, d width of the verifier, H key/value heads,
D head width, r rank, L cache length, S source length, G = B*H.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmasd.runner.attention import attend, per_head
from cmasd.runner.bart import FeedForward, Make, Sublayer, norm_of
from cmasd.runner.base import Memory
from cmasd.runner.dense import Dense, dense, linear_of
from cmasd.runner.families import ANY_WORD, Words


@dataclass(frozen=True)
class ParallelShape:
    """Everything that decides the names and sizes of the weights."""

    width: int
    """d, of the verifier's hidden states."""
    heads: int
    """H, of the verifier's cache."""
    head_width: int
    """D, of the verifier's cache."""
    has_source: bool
    """Whether the verifier has an encoder."""
    queries: int = 8
    """K, most tokens drafted in one pass."""
    layers: int = 1
    """The last of these reads the verifier's last layer, the one before the verifier's last but one."""
    feed_forward: int = 512
    norm_first: bool = False
    """Norms before the residual branches, or after, as in the verifier that the weights begin with."""
    rank: int = 64
    """r, of the Markov head; 0: none."""
    has_confidence: bool = True
    """Whether a head predicts acceptance."""


class _Attention(nn.Module):
    def __init__(self, shape: ParallelShape) -> None:
        super().__init__()
        inner = shape.heads * shape.head_width
        self.q_proj = nn.Linear(shape.width, inner)
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
        self.activation_fn = nn.ReLU()
        self.fc2 = nn.Linear(shape.feed_forward, shape.width)
        self.final_layer_norm = nn.LayerNorm(shape.width)


class ParallelNetwork(nn.Module):
    """The weights."""

    def __init__(self, shape: ParallelShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.width
        self.start = nn.Parameter(torch.zeros(width))
        self.queries = nn.Parameter(torch.randn(shape.queries, width) * 0.1)
        self.fuse = nn.Linear(2 * width, width)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        if shape.rank:
            self.context = nn.Linear(width, shape.rank)
            self.previous = nn.Linear(width, shape.rank, bias=False)
            self.out = nn.Linear(shape.rank, width, bias=False)
            nn.init.zeros_(self.out.weight)
        if shape.has_confidence:
            self.judge = nn.Linear(width + shape.rank, 1)


@dataclass(frozen=True)
class _Reading:
    """Attention over keys and values that the verifier stored."""

    query: Dense
    out: Dense
    sublayer: Sublayer

    def __call__(
        self, x_Nd: Tensor, rows: int, stored: tuple[Tensor, Tensor], mask: Tensor, gate_N1: Tensor | None = None
    ) -> Tensor:
        def branch(h_Nd: Tensor) -> Tensor:
            read_Nd = self.out(attend(self.query(h_Nd), rows, *stored, mask))
            return read_Nd if gate_N1 is None else read_Nd * gate_N1

        return self.sublayer(x_Nd, branch)


@dataclass(frozen=True)
class ParallelForward:
    """The computation, over weights stored as `make` wants them: as they are to train, packed to draft."""

    fuse: Dense
    layers: list[tuple[_Reading, _Reading | None, FeedForward]]
    network: ParallelNetwork

    @classmethod
    def of(cls, network: ParallelNetwork, make: Make) -> "ParallelForward":
        """`make` turns an `nn.Linear` into a `Dense`."""
        first = network.shape.norm_first

        def reading(attention: _Attention, norm: nn.LayerNorm) -> _Reading:
            return _Reading(make(attention.q_proj), make(attention.out_proj), Sublayer(norm_of(norm), first))

        layers = []
        for layer in network.layers:
            assert isinstance(layer, _Layer), "made above"
            source = None
            if network.shape.has_source:
                source = reading(layer.encoder_attn, layer.encoder_attn_layer_norm)
            layers.append(
                (
                    reading(layer.self_attn, layer.self_attn_layer_norm),
                    source,
                    FeedForward.of(layer, first, make),
                )
            )
        return cls(make(network.fuse), layers, network)

    def __call__(
        self, seen_BCd: Tensor, latest_BCd: Tensor, begun_BC: Tensor, memory: Memory, queries_BCKd: Tensor
    ) -> Tensor:
        """(B, C*K, d) states of `network.queries`, or of some of them, behind each cut; B and C may be 1 in those.

        `seen_BCd` are the verifier's last hidden states (`network.start` where there is none yet), `latest_BCd` the
        latest tokens (`Said.heard_Vd`); `begun_BC` is 0 where the verifier's cache holds nothing of the row, else 1.
        """
        rows, cuts, width = seen_BCd.shape
        features = torch.cat([F.layer_norm(seen_BCd, (width,)), latest_BCd], dim=-1)
        x_BC1d = self.fuse(features.view(rows * cuts, -1)).view(rows, cuts, 1, width)
        x_Nd = (x_BC1d + queries_BCKd).view(-1, width)
        queries = queries_BCKd.shape[2]
        gate_N1 = begun_BC[:, :, None].expand(-1, -1, queries).reshape(-1, 1)
        history_mask = memory.history_mask if cuts == 1 else memory.history_mask.repeat_interleave(queries, dim=2)
        heads = self.network.shape.heads
        history_mask = per_head(history_mask, heads)
        source_mask = None if memory.source_mask is None else per_head(memory.source_mask, heads)
        for i, (history, source, feed_forward) in enumerate(self.layers):
            x_Nd = history(x_Nd, rows, memory.history[i], history_mask, gate_N1)
            if source is not None and source_mask is not None:
                x_Nd = source(x_Nd, rows, memory.sources[i], source_mask)
            x_Nd = feed_forward(x_Nd)
        return x_Nd.view(rows, cuts * queries, width)


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

    def judged(self) -> Tensor | None:
        """(B*K,) predicted acceptance, of all tokens whose logits were asked for; None without a confidence head."""
        if self._model.judge is None:
            return None
        features = self._z_BKd
        if self._steps:
            features = torch.cat([features, torch.stack(self._steps, 1)], dim=-1)
        return torch.sigmoid(self._model.judge(features.flatten(0, 1))).squeeze(1)


class ParallelModel:
    """A network with its weights stored for drafting, and the verifier's words in it."""

    def __init__(self, network: ParallelNetwork, verifier: Any, words: Words = ANY_WORD, int8: bool = False) -> None:
        """`words` says which of the verifier's tokens are drafted."""
        make = partial(dense, int8=int8)
        said = Said.of(verifier, words.tensor(network.start.device))
        self.shape = network.shape
        self.head = make(said.linear)
        self._forward = ParallelForward.of(network, make)
        self._network = network
        self._heard_Vd = said.heard_Vd
        has_markov = network.shape.rank > 0
        self.context = make(network.context) if has_markov else None
        self.judge = dense(network.judge) if network.shape.has_confidence else None
        if has_markov:
            self.previous_Vr = F.linear(said.heard_Vd, network.previous.weight)
            self.out_rS = (said.linear.weight @ network.out.weight).T.contiguous()

    @torch.no_grad()
    def __call__(self, seen_Bd: Tensor, latest_B: Tensor, cached_B: Tensor, memory: Memory, queries: int) -> States:
        """`seen_Bd` the verifier's hidden states, `latest_B` (B,) the latest tokens, `cached_B` (B,) those before."""
        begun_B1 = cached_B[:, None] > 0
        seen_Bd = torch.where(begun_B1, seen_Bd, self._network.start)
        latest_Bd = F.embedding(latest_B, self._heard_Vd)
        chosen_11Kd = self._network.queries[None, None, :queries]
        z_BKd = self._forward(seen_Bd[:, None], latest_Bd[:, None], begun_B1.to(seen_Bd.dtype), memory, chosen_11Kd)
        return States(self, z_BKd)


@dataclass(frozen=True)
class Said:
    """The verifier's words: how a drafter hears them, and how it says them."""

    heard_Vd: Tensor
    """Input embeddings, each normalised, so that their scale does not matter."""
    linear: nn.Linear
    """The output layer, of the shortlist where there is one."""

    @classmethod
    def of(cls, model: Any, shortlist_S: Tensor | None) -> "Said":
        """From a loaded verifier, in its precision."""
        weight_Vd: Tensor = model.lm_head.weight.detach()
        bias: Tensor | None = getattr(model, "final_logits_bias", None)
        bias_V = None if bias is None or not bool(bias.any()) else bias.detach().view(-1)
        heard_Vd = model.get_input_embeddings().weight.detach()
        heard_Vd = F.layer_norm(heard_Vd, heard_Vd.shape[-1:])
        if shortlist_S is None:
            return cls(heard_Vd, linear_of(weight_Vd, bias_V))
        return cls(heard_Vd, linear_of(weight_Vd[shortlist_S], None if bias_V is None else bias_V[shortlist_S]))
