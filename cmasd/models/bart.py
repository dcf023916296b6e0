"""BART and its kin (Marian, mBART, Pegasus, M2M100; Whisper's decoder) in few tensor operations.

Small models are bound by the overhead of each operation, not by arithmetic: the stock modules of transformers take
9 ms for a step of a 6-layer decoder whose products take one. Here a layer is three products less (queries, keys and
values are one), no module calls, weights stored for the machine (`dense.py`), and an encoder or a decoder is one call
where all its layers are known to the kernels. The weights are those of the loaded model; tested family by family.

Shapes: B rows, T window, S source length, N = B*T, d model width, H heads, D head width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cmasd.kernels import Bits, Block, Norm, PackedDecoder, kernels_for
from cmasd.models.attention import Attend, LayerPairs
from cmasd.models.dense import Dense, NativeDense, activated, added, dense, linear_of
from cmasd.models.masks import source_mask
from cmasd.window import Window

Make = Callable[..., Dense]
"""`dense`, with its choices made."""


def norm_of(module: Any) -> Norm:
    """A layer norm in few operations."""
    return Norm(module.weight, module.bias, module.eps)


@dataclass(frozen=True)
class Embedding:
    """Tokens and positions to hidden states."""

    tokens_Vd: Tensor
    """Scaled."""
    positions_Pd: Tensor
    padding: int | None
    """Families that count no position for this id give it place 0, and the others one more. A whole source is counted
    without it; a decoder is fed token by token, and counts it like any other."""
    norm: Norm | None

    @classmethod
    def of(cls, side: Any, length: int) -> "Embedding":
        """From an encoder or a decoder of transformers, for `length` positions or as many as its table has."""
        scale = getattr(side, "embed_scale", None) or getattr(side.embed_tokens, "embed_scale", None) or 1.0
        table = side.embed_positions
        padding = None
        if hasattr(table, "make_weights"):
            padding = table.padding_idx
            positions_Pd = table.get_embedding(padding + 1 + length, table.embedding_dim, padding)[padding:]
            positions_Pd = positions_Pd.to(side.embed_tokens.weight)
        else:
            positions_Pd = table.weight[getattr(table, "offset", 0) :]
        norm = getattr(side, "layernorm_embedding", None)
        weight_Vd = side.embed_tokens.weight
        tokens_Vd = weight_Vd if scale == 1.0 else weight_Vd * scale
        return cls(tokens_Vd, positions_Pd, padding, norm_of(norm) if norm else None)

    def whole(self, tokens_BS: Tensor) -> Tensor:
        """(B, S, d) of sources from their first token on."""
        if self.padding is None:
            return self(tokens_BS, torch.arange(tokens_BS.shape[1], device=tokens_BS.device).expand_as(tokens_BS))
        return self(tokens_BS, (tokens_BS != self.padding).cumsum(1) - 1)

    def __call__(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """(B, T, d). Positions past the table are those of padding or of drafts past a row's end: never used."""
        if self.padding is not None:
            positions_BT = (positions_BT + 1).masked_fill(tokens_BT == self.padding, 0)
        positions_BT = positions_BT.clamp_max(len(self.positions_Pd) - 1)
        hidden_BTd = F.embedding(tokens_BT, self.tokens_Vd) + F.embedding(positions_BT, self.positions_Pd)
        return hidden_BTd if self.norm is None else self.norm(hidden_BTd)


@dataclass(frozen=True)
class Sublayer:
    """A residual branch, with its norm before it (mBART, Pegasus, M2M100) or after (BART, Marian)."""

    first: Norm | None
    end: Callable[[Tensor, Tensor], Tensor]
    """The last product, the sum, and the norm where it comes after."""

    @classmethod
    def of(cls, out: Dense, norm: Norm, norm_first: bool) -> "Sublayer":
        """`out` is the last product."""
        return cls(norm, added(out, None)) if norm_first else cls(None, added(out, norm))

    def __call__(self, x_Nd: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, d); `branch` makes what the last product is given."""
        return self.end(branch(x_Nd if self.first is None else self.first(x_Nd)), x_Nd)


@dataclass(frozen=True)
class FeedForward:
    """The two products at the end of a layer."""

    inner: Dense
    """With the activation."""
    sublayer: Sublayer

    @classmethod
    def of(cls, layer: Any, norm_first: bool, make: Make) -> "FeedForward":
        """From a layer of transformers."""
        active = activated(make(layer.fc1), layer.activation_fn)
        return cls(active, Sublayer.of(make(layer.fc2), norm_of(layer.final_layer_norm), norm_first))

    def __call__(self, x_Nd: Tensor) -> Tensor:
        """(N, d)"""
        return self.sublayer(x_Nd, self.inner)


@dataclass(frozen=True)
class SelfAttention:
    """Queries, keys and values in one product: all heads' queries, then (key, value) head by head."""

    heads: int
    project: Dense
    sublayer: Sublayer

    @classmethod
    def of(cls, layer: Any, norm_first: bool, make: Make) -> "SelfAttention":
        """From a layer of transformers."""
        attention = layer.self_attn
        project = make(attention.q_proj, paired(attention))
        sublayer = Sublayer.of(make(attention.out_proj), norm_of(layer.self_attn_layer_norm), norm_first)
        return cls(attention.num_heads, project, sublayer)

    def over_cache(self, x_Nd: Tensor, write: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, d); `write` keeps what is projected (N, 3d) and attends with it."""
        return self.sublayer(x_Nd, lambda h_Nd: write(self.project(h_Nd)))

    def over_source(self, x_Nd: Tensor, rows: int, mask: Tensor | None) -> Tensor:
        """(N, d): every position of a row sees the others; `mask` (B, 1, 1, S), None where all count."""

        def branch(h_Nd: Tensor) -> Tensor:
            width = h_Nd.shape[1]
            queries_BSd, pairs_BSp = self.project(h_Nd).view(rows, -1, 3 * width).split([width, 2 * width], dim=-1)
            queries_BHSD = queries_BSd.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            keys_BHSD, values_BHSD = pairs_BSp.unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(2, dim=-1)
            out_BHSD = F.scaled_dot_product_attention(queries_BHSD, keys_BHSD, values_BHSD, attn_mask=mask)
            return out_BHSD.transpose(1, 2).reshape(h_Nd.shape)

        return self.sublayer(x_Nd, branch)


def paired(attention: Any) -> torch.nn.Linear:
    """Keys and values as one layer whose outputs are (head, key | value, D)."""

    def joined(key: Tensor, value: Tensor) -> Tensor:
        split = [one.unflatten(0, (attention.num_heads, -1)) for one in (key, value)]
        return torch.cat(split, dim=1).flatten(0, 1)

    key, value = attention.k_proj, attention.v_proj
    if key.bias is None and value.bias is None:
        return linear_of(joined(key.weight, value.weight), None)
    biases = [one.weight.new_zeros(len(one.weight)) if one.bias is None else one.bias for one in (key, value)]
    return linear_of(joined(key.weight, value.weight), joined(*biases))


@dataclass(frozen=True)
class CrossAttention:
    """Over stored keys and values, such as those of the source."""

    heads: int
    query: Dense
    store: Dense
    """States that are read to (head, key | value, D)."""
    sublayer: Sublayer

    @classmethod
    def of(cls, layer: Any, norm_first: bool, make: Make) -> "CrossAttention":
        """From a layer of transformers."""
        attention = layer.encoder_attn
        sublayer = Sublayer.of(make(attention.out_proj), norm_of(layer.encoder_attn_layer_norm), norm_first)
        return cls(attention.num_heads, make(attention.q_proj), make(paired(attention)), sublayer)

    def __call__(self, x_Nd: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, d); `read` attends with the queries (N, d) it is given."""
        return self.sublayer(x_Nd, lambda h_Nd: read(self.query(h_Nd)))

    def pair(self, encoded_BSd: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, D) of a batch of states."""
        rows, length, width = encoded_BSd.shape
        stored = self.store(encoded_BSd.reshape(-1, width)).view(rows, length, self.heads, -1).transpose(1, 2)
        keys_BHSD, values_BHSD = stored.chunk(2, dim=-1)
        return keys_BHSD, values_BHSD


def _packed(
    embed: Embedding, layers: Sequence[tuple[SelfAttention, CrossAttention | None, FeedForward]], norm: Norm | None
) -> PackedDecoder | None:
    """An encoder's layers have no attention to a source."""
    blocks = []
    for attention, cross, feed_forward in layers:
        products: list[object] = [attention.project, attention.sublayer.end]
        products += [] if cross is None else [cross.query, cross.sublayer.end, cross.store]
        products += [feed_forward.inner, feed_forward.sublayer.end]
        parts = [product.packed for product in products if isinstance(product, NativeDense)]
        if len(parts) < len(products):
            return None
        first = attention.sublayer.first, None if cross is None else cross.sublayer.first, feed_forward.sublayer.first
        project, keep, *source, inner, end = parts
        query, add, store = source or (None, None, None)
        blocks.append(Block(first, project, keep, query, add, store, inner, end))
    tables = embed.tokens_Vd, embed.positions_Pd, embed.padding, embed.norm
    return PackedDecoder(*tables, blocks, layers[0][0].heads, norm)


class BartEncoder:
    """Sources to hidden states. It remembers its latest batch, for a drafter that shares the verifier's encoder."""

    def __init__(self, encoder: Any, max_source_length: int, bits: Bits = None) -> None:
        self.modules = encoder
        norm_first = getattr(encoder, "layer_norm", None) is not None
        make = partial(dense, bits=bits)
        self._embed = Embedding.of(encoder, max_source_length)
        self._layers = [
            (SelfAttention.of(layer, norm_first, make), None, FeedForward.of(layer, norm_first, make))
            for layer in encoder.layers
        ]
        self._norm = norm_of(encoder.layer_norm) if norm_first else None
        self._kernels = kernels_for(self._embed.tokens_Vd)
        self._packed = _packed(self._embed, self._layers, self._norm)
        self._latest: tuple[list[list[int]], Tensor] | None = None

    @property
    def is_packed(self) -> bool:
        """Whether it runs in a call of a kernel."""
        return self._kernels is not None and self._packed is not None

    def equals(self, other: "BartEncoder") -> bool:
        """Whether both have the same weights in the same precision."""
        mine, theirs = self.modules.state_dict(), other.modules.state_dict()
        return mine.keys() == theirs.keys() and all(
            one.dtype == theirs[name].dtype and torch.equal(one, theirs[name]) for name, one in mine.items()
        )

    def __call__(self, sources: list[list[int]], ids_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """(B, S, d) states of `sources`, padded to `ids_BS`."""
        if self._latest is None or self._latest[0] != sources:
            self._latest = (sources, self._encode(ids_BS, lengths_B))
        return self._latest[1]

    def _encode(self, ids_BS: Tensor, lengths_B: Tensor) -> Tensor:
        if self._kernels is not None and self._packed is not None:
            window = Window.prefixes(ids_BS, lengths_B)
            return window.padded(self._kernels.encode(self._packed, window))
        rows, length = ids_BS.shape
        x_BSd = self._embed.whole(ids_BS)
        mask = source_mask(lengths_B, length, x_BSd.dtype)
        x_Nd = x_BSd.view(rows * length, -1)
        for attention, _, feed_forward in self._layers:
            x_Nd = feed_forward(attention.over_source(x_Nd, rows, mask))
        if self._norm is not None:
            x_Nd = self._norm(x_Nd)
        return x_Nd.view(rows, length, -1)


class BartDecoder:
    """Windows of tokens to hidden states, over a slot cache."""

    def __init__(self, decoder: Any, max_length: int, bits: Bits = None) -> None:
        norm_first = getattr(decoder, "layer_norm", None) is not None
        make = partial(dense, bits=bits)
        self._embed = Embedding.of(decoder, max_length)
        self._layers = [
            (
                SelfAttention.of(layer, norm_first, make),
                CrossAttention.of(layer, norm_first, make),
                FeedForward.of(layer, norm_first, make),
            )
            for layer in decoder.layers
        ]
        self._norm = norm_of(decoder.layer_norm) if norm_first else None
        self.heads = self._layers[0][0].heads

    def share_weights(self, other: "BartDecoder") -> None:
        """Use the first layers of `other`, and its embeddings, as they are stored there."""
        self._layers = other._layers[: len(self._layers)]
        self._embed = other._embed

    def packed(self) -> PackedDecoder | None:
        """All of it, for one call of a kernel; None where a part is not packed."""
        return _packed(self._embed, self._layers, self._norm)

    def pairs(self, encoded_BSd: Tensor) -> LayerPairs:
        """Every layer's cross-attention keys and values (B, H, S, D)."""
        return [cross.pair(encoded_BSd) for _, cross, _ in self._layers]

    def __call__(self, tokens_BT: Tensor, positions_BT: Tensor, write: Attend, read: Attend) -> Tensor:
        """(B, T, d) hidden states; `write` attends to the output so far, `read` to the source."""
        rows, window = tokens_BT.shape
        x_Nd = self._embed(tokens_BT, positions_BT).view(rows * window, -1)
        for i, (attention, cross, feed_forward) in enumerate(self._layers):
            x_Nd = feed_forward(cross(attention.over_cache(x_Nd, partial(write, i)), partial(read, i)))
        if self._norm is not None:
            x_Nd = self._norm(x_Nd)
        return x_Nd.view(rows, window, -1)
