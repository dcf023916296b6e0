"""A verifier run once over its own outputs, frozen: what a parallel drafter learns from, and is scored on.

Shapes: B rows, T target tokens, S source length, d width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cmasd.checkpoints.by_name import vocabulary_size
from cmasd.generation.settings import decoder_start
from cmasd.models.masks import source_mask
from cmasd.runner.runners import padded


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
    source_BS: Tensor | None
    """The source's tokens; None without an encoder."""
    encoded_BSd: Tensor | None
    """What the verifier's encoder made of them."""
    source_mask: Tensor | None
    """(B, 1, 1, S)"""

    @property
    def tokens(self) -> int:
        """Of the outputs."""
        return int((self.ends_B - self.first_B).sum())

    @property
    def cuts_BC(self) -> Tensor:
        """(B, C) places behind which a draft may begin: from each row's first cut on, behind shorter ones' ends."""
        longest = int((self.ends_B - self.first_B).max())
        return self.first_B[:, None] + torch.arange(longest, device=self.first_B.device)


@torch.no_grad()
def listen(model: PreTrainedModel, sources: list[list[int]], targets: list[list[int]]) -> Lesson:
    """Run the verifier over given outputs."""
    verifier: Any = model
    device = model.device
    filler = verifier.config.pad_token_id or 0
    encoder_decoder = bool(verifier.config.is_encoder_decoder)
    prompts = sources
    if encoder_decoder:
        first = decoder_start(verifier.generation_config, verifier.config, vocabulary_size(verifier.config))
        prompts = [[first]] * len(sources)
    tokens_BU, lengths_B = padded([a + b for a, b in zip(prompts, targets, strict=True)], filler, device)
    first_B = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
    inputs_BT, ends_B = tokens_BU[:, :-1], lengths_B - 1
    if not encoder_decoder:
        real_BT = (torch.arange(inputs_BT.shape[1], device=device) < lengths_B[:, None]).long()
        out = verifier.base_model(inputs_BT, attention_mask=real_BT, use_cache=False)
        return Lesson(tokens_BU, first_B, ends_B, out.last_hidden_state, None, None, None)
    ids_BS, source_lengths_B = padded(sources, filler, device)
    read_BS = (torch.arange(ids_BS.shape[1], device=device) < source_lengths_B[:, None]).long()
    encoded_BSd = verifier.get_encoder()(ids_BS, attention_mask=read_BS).last_hidden_state
    out = verifier.get_decoder()(
        input_ids=inputs_BT, encoder_hidden_states=encoded_BSd, encoder_attention_mask=read_BS, use_cache=False
    )
    mask = source_mask(source_lengths_B, ids_BS.shape[1], model.dtype)
    return Lesson(tokens_BU, first_B, ends_B, out.last_hidden_state, ids_BS, encoded_BSd, mask)
