"""A parallel drafter for one call of a kernel, where all of its products are packed.

In tensor operations one pass of a small drafter takes longer than its verifier's forward, which is one call itself.
"""

import torch
from torch import Tensor

from cmasd.kernels import Block, Packed, PackedDecoder, PackedDrafter, kernels_for
from cmasd.models.dense import NativeDense
from cmasd.models.parallel_network import LayerForward, ParallelModel


def packed_drafter(model: ParallelModel, ids_S: Tensor | None) -> PackedDrafter | None:
    """`ids_S` are the tokens that are drafted, None for all; None where a part has no kernel."""
    shape, kernels = model.shape, kernels_for(model.queries_Kd)
    blocks = [_block(layer) for layer in model.forward.layers]
    fuse, head = _packed(model.forward.fuse), _packed(model.head)
    whole = [block for block in blocks if block is not None]
    if kernels is None or fuse is None or head is None or len(whole) < len(blocks):
        return None
    if shape.heads * shape.head_width != shape.width:
        return None
    markov = None
    if model.context is not None:
        context = _packed(model.context)
        if context is None:
            return None
        markov = context, model.previous_Vr, kernels.pack(model.out_rS.T.contiguous(), None, is_draft=True)
    tables = model.embedding.tokens_Vd, model.embedding.positions_Pd, model.embedding.padding, model.embedding.norm
    decoder = PackedDecoder(*tables, whole, shape.heads, None)
    judge_f = None
    if model.judge_linear is not None:
        judge_f = torch.cat([model.judge_linear.weight[0], model.judge_linear.bias]).detach()
    return PackedDrafter(decoder, fuse, head, markov, model.queries_Kd, judge_f, ids_S)


def _block(layer: LayerForward) -> Block | None:
    history, source, feed_forward = layer.history, layer.source, layer.feed_forward
    read = [] if source is None else [source]
    attention = [part for one in (history, *read) for part in (one.query, one.sublayer.end)]
    stores = [one.store for one in (history, *read)]
    parts = [_packed(part) for part in (*attention, *stores, feed_forward.inner, feed_forward.sublayer.end)]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return None
    second = None if source is None else source.sublayer.first
    first = history.sublayer.first, second, feed_forward.sublayer.first
    if source is None:
        project, keep, recall, inner, end = found
        return Block(first, project, keep, None, None, None, inner, end, recall)
    project, keep, query, add, recall, store, inner, end = found
    return Block(first, project, keep, query, add, store, inner, end, recall)


def _packed(product: object) -> Packed | None:
    return product.packed if isinstance(product, NativeDense) else None
