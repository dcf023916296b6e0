"""What a checkpoint's generation config does to greedy output, at every position of a verify window at once.

Users know a checkpoint by its greedy output, and that includes banned pads, forced language codes and minimum lengths.
Each rule equals the logits processor of the same name in transformers, applied in transformers' order; a test compares
the two. Settings that are refused or replaced are listed in `checkpoints.py`, so that no answer differs in silence.

Shapes: B rows, T window, V vocabulary, L tokens held, N = L + T, E listed ids, K banned words, W n-grams.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cmasd.errors import ModelError
from cmasd.generation.settings import notices, refuse
from cmasd.generation.timestamps import Timestamps

_INF = float("inf")


@dataclass(frozen=True)
class Constraints:
    """The rules of one checkpoint. Build it with `from_generation_config`."""

    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end a row."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens already in the row; 1 is off."""
    no_repeat_ngram_size: int = 0
    """No n-gram of this many tokens occurs twice in a row; 0 is off."""
    banned: tuple[int, ...] = ()
    """Bad words of one token."""
    banned_words: tuple[tuple[int, ...], ...] = ()
    """Bad words of two tokens or more: the last one is banned after the others."""
    min_length: int = 0
    """Tokens in the row, prompt included, before it may end."""
    min_new_tokens: int = 0
    """Generated tokens before the row may end."""
    forced_bos_token_id: int | None = None
    """The token after a row's first one; of several the lowest id."""
    forced_eos_token_ids: tuple[int, ...] = ()
    """The token at a row's last allowed position; the lowest id wins."""
    remove_invalid_values: bool = False
    """Replace NaN by 0 and infinities by the largest finite values."""
    suppressed: tuple[int, ...] = ()
    """Tokens never generated, forced ones included."""
    begin_suppressed: tuple[int, ...] = ()
    """Tokens not generated first."""
    timestamps: Timestamps | None = None
    """When timestamps may be said, in rows that say any."""
    notices: tuple[str, ...] = ()
    """One sentence for each setting that greedy decoding replaces."""
    _ids: dict[tuple[object, ...], Tensor] = field(default_factory=dict, repr=False, compare=False)
    """Index tensors by ids and device, made once."""

    @classmethod
    def from_generation_config(
        cls, config: Any, vocabulary_size: int, *, forced_bos_token_id: int | None = None, samples: bool = False
    ) -> "Constraints":
        """Read a `GenerationConfig`; `forced_bos_token_id` (a target language) overrides the checkpoint's own.

        Raises ModelError for a setting that would change greedy output and is not supported. `samples`: notices are for
        speculative sampling.
        """
        refuse(config)
        eos = _below(as_ids(config.eos_token_id), vocabulary_size)
        words = {tuple(word) for word in config.bad_words_ids or ()} - {(token,) for token in eos}
        _check_words(words, vocabulary_size)
        forced_eos = as_ids(config.forced_eos_token_id)
        _check_forced("generation_config.forced_eos_token_id", forced_eos, vocabulary_size)
        first, name = as_ids(config.forced_bos_token_id), "generation_config.forced_bos_token_id"
        if forced_bos_token_id is not None:
            first, name = (forced_bos_token_id,), "models.target_language"
        _check_forced(name, first, vocabulary_size)
        return cls(
            eos_token_ids=eos,
            repetition_penalty=float(config.repetition_penalty or 1.0),
            no_repeat_ngram_size=config.no_repeat_ngram_size or 0,
            banned=tuple(sorted(word[0] for word in words if len(word) == 1)),
            banned_words=tuple(sorted(word for word in words if len(word) > 1)),
            min_length=(config.min_length or 0) if config.min_new_tokens is None else 0,
            min_new_tokens=config.min_new_tokens or 0,
            forced_bos_token_id=min(first, default=None),
            forced_eos_token_ids=forced_eos,
            remove_invalid_values=bool(config.remove_invalid_values),
            suppressed=_below(config.suppress_tokens, vocabulary_size),
            begin_suppressed=_below(config.begin_suppress_tokens, vocabulary_size),
            notices=notices(config, samples),
        )

    @property
    def is_free(self) -> bool:
        """Whether `apply` never changes a logit."""
        return not (
            self._reads_history
            or self.banned
            or (self.eos_token_ids and (self.min_length or self.min_new_tokens))
            or self.forced_bos_token_id is not None
            or self.forced_eos_token_ids
            or self.remove_invalid_values
            or self.suppressed
            or self.begin_suppressed
            or self.timestamps
        )

    def rests(self, tokens_BL: Tensor, starts_B: Tensor, prompt_lengths_B: Tensor) -> bool:
        """Whether `apply` would change no logit of these windows; on an accelerator, where asking waits, if it never
        does.
        """
        if self.is_free or not self._acts_seldom or starts_B.device.type != "cpu":
            return self.is_free
        if self.timestamps is not None and bool(self.timestamps.acts_B(tokens_BL, prompt_lengths_B).any()):
            return False
        return not bool((starts_B + 1 == self._begins_B(prompt_lengths_B)).any())

    @cached_property
    def _acts_seldom(self) -> bool:
        """Whether all rules are of rows that begin, or say timestamps."""
        return replace(self, begin_suppressed=(), timestamps=None).is_free

    @property
    def _reads_history(self) -> bool:
        return self.repetition_penalty != 1.0 or self.no_repeat_ngram_size > 0 or bool(self.banned_words)

    def apply(
        self,
        logits_BTV: Tensor,
        tokens_BL: Tensor,
        starts_B: Tensor,
        prompt_lengths_B: Tensor,
        limits_B: Tensor,
        window_BT: Tensor,
    ) -> Tensor:
        """Constrain the logits in place and return them; their dtype stays.

        Position t of a row sees `tokens_BL[:starts]` and then `window_BT[:t + 1]`; what lies in `tokens_BL` from
        `starts_B` on is not read. `prompt_lengths_B` counts the leading tokens that were not generated
        (encoder-decoder: 1); `limits_B` is the length at which the row must stop.
        """
        if self.is_free:
            return logits_BTV
        steps_T = torch.arange(window_BT.shape[1], device=starts_B.device)
        lengths_BT = starts_B[:, None] + steps_T + 1
        if self._reads_history:
            row_BN = torch.cat([tokens_BL, torch.zeros_like(window_BT)], dim=1)
            row_BN.scatter_(1, starts_B[:, None] + steps_T, window_BT)
            self._apply_history(logits_BTV, row_BN, lengths_BT)
        self._ban(logits_BTV, self.banned)
        if self.min_length or self.min_new_tokens:
            early_BT = (lengths_BT < self.min_length) | (lengths_BT - prompt_lengths_B[:, None] < self.min_new_tokens)
            self._ban_where(logits_BTV, self.eos_token_ids, early_BT)
        if self.forced_bos_token_id is not None:
            _force(logits_BTV[:, :1], (self.forced_bos_token_id,), lengths_BT[:, :1] == 1)
        if self.forced_eos_token_ids:
            _force(logits_BTV, self.forced_eos_token_ids, lengths_BT == limits_B[:, None] - 1)
        if self.remove_invalid_values:
            logits_BTV.nan_to_num_()
        self._ban(logits_BTV, self.suppressed)
        if self.begin_suppressed:
            self._ban_where(logits_BTV, self.begin_suppressed, lengths_BT == self._begins_B(prompt_lengths_B)[:, None])
        if self.timestamps is not None:
            self.timestamps.apply(logits_BTV, tokens_BL, starts_B, prompt_lengths_B, window_BT)
        return logits_BTV

    def _apply_history(self, logits_BTV: Tensor, row_BN: Tensor, lengths_BT: Tensor) -> None:
        if self.repetition_penalty != 1.0:
            _penalise_repetition(logits_BTV, row_BN, lengths_BT, self.repetition_penalty)
        if self.no_repeat_ngram_size:
            _ban_repeated_ngrams(logits_BTV, row_BN, lengths_BT, self.no_repeat_ngram_size)
        for size in sorted({len(word) for word in self.banned_words}):
            words = tuple(word for word in self.banned_words if len(word) == size)
            _ban_words(logits_BTV, row_BN, lengths_BT, self._tensor(words, row_BN.device))

    def _begins_B(self, prompt_lengths_B: Tensor) -> Tensor:
        """Length of a row when its first free token is due: a forced one does not count."""
        if self.forced_bos_token_id is None:
            return prompt_lengths_B
        return prompt_lengths_B + (prompt_lengths_B <= 1)

    def _ban(self, logits_BTV: Tensor, ids: tuple[int, ...]) -> None:
        if ids:
            logits_BTV.index_fill_(2, self._tensor(ids, logits_BTV.device), -_INF)

    def _ban_where(self, logits_BTV: Tensor, ids: tuple[int, ...], mask_BT: Tensor) -> None:
        if not ids:
            return
        ids_E = self._tensor(ids, logits_BTV.device)
        columns_BTE = logits_BTV.index_select(2, ids_E).masked_fill_(mask_BT[..., None], -_INF)
        logits_BTV.index_copy_(2, ids_E, columns_BTE)

    def _tensor(self, ids: tuple[Any, ...], device: torch.device) -> Tensor:
        key = (ids, device)
        if key not in self._ids:
            self._ids[key] = torch.tensor(ids, device=device)
        return self._ids[key]


def _force(logits_BTV: Tensor, ids: tuple[int, ...], mask_BT: Tensor) -> None:
    """Leave only `ids` possible where the mask says so."""
    if mask_BT.device.type == "cpu" and not mask_BT.any():
        return  # on an accelerator this look would wait for the device
    logits_BTV.masked_fill_(mask_BT[..., None], -_INF)
    for token in ids:
        logits_BTV[..., token].masked_fill_(mask_BT, 0.0)


def _penalise_repetition(logits_BTV: Tensor, row_BN: Tensor, lengths_BT: Tensor, penalty: float) -> None:
    known_BN = (row_BN >= 0) & (row_BN < logits_BTV.shape[2])
    seen_BTN = (torch.arange(row_BN.shape[1], device=row_BN.device) < lengths_BT[..., None]) & known_BN[:, None]
    ids_BTN = row_BN[:, None].expand(seen_BTN.shape).where(seen_BTN, 0)
    # Places not seen point at id 0, so they must write what id 0 gets: the penalty, when the row holds it.
    applies_BTN = seen_BTN | (seen_BTN & (ids_BTN == 0)).any(dim=2, keepdim=True)
    scores_BTN = logits_BTV.gather(2, ids_BTN)
    penalised_BTN = torch.where(scores_BTN < 0, scores_BTN * penalty, scores_BTN / penalty)
    logits_BTV.scatter_(2, ids_BTN, torch.where(applies_BTN, penalised_BTN, scores_BTN))


def _ban_repeated_ngrams(logits_BTV: Tensor, row_BN: Tensor, lengths_BT: Tensor, size: int) -> None:
    """Ban every token that followed the last `size - 1` tokens earlier in the row."""
    if row_BN.shape[1] < size:
        return
    ngrams_BWn = row_BN.unfold(1, size, 1)
    ends_W = torch.arange(size - 1, row_BN.shape[1], device=row_BN.device)
    matches_BTW = ends_W < lengths_BT[..., None]
    for offset in range(size - 1):
        suffix_BT = row_BN.gather(1, (lengths_BT - size + 1 + offset).clamp(min=0))
        matches_BTW = matches_BTW & (ngrams_BWn[:, None, :, offset] == suffix_BT[..., None])
    _ban_matches(logits_BTV, ngrams_BWn[:, None, :, -1], matches_BTW)


def _ban_words(logits_BTV: Tensor, row_BN: Tensor, lengths_BT: Tensor, words_KP: Tensor) -> None:
    """Ban the last token of every word (all of one length) whose other tokens end the row."""
    prefix_size = words_KP.shape[1] - 1
    matches_BTK = (lengths_BT >= prefix_size)[..., None]
    for offset in range(prefix_size):
        tail_BT = row_BN.gather(1, (lengths_BT - prefix_size + offset).clamp(min=0))
        matches_BTK = matches_BTK & (words_KP[:, offset] == tail_BT[..., None])
    _ban_matches(logits_BTV, words_KP[None, None, :, -1], matches_BTK)


def _ban_matches(logits_BTV: Tensor, ids: Tensor, matches: Tensor) -> None:
    """Ban `ids` (broadcast to the matches) where they match; +inf leaves a logit alone under the minimum."""
    values = torch.where(matches, -_INF, _INF).to(logits_BTV.dtype)
    vocabulary_size = logits_BTV.shape[2]
    values = values.masked_fill(ids >= vocabulary_size, _INF)
    logits_BTV.scatter_reduce_(2, ids.clamp(0, vocabulary_size - 1).expand(matches.shape), values, "amin")


def _check_words(words: set[tuple[int, ...]], vocabulary_size: int) -> None:
    for word in sorted(words):
        if not word or not all(0 <= token < vocabulary_size for token in word):
            raise ModelError(
                f"generation_config.bad_words_ids: not a word of this vocabulary, got {list(word)}; expected token ids "
                f"from 0 to {vocabulary_size - 1}. Mend the checkpoint's generation_config.json."
            )


def _check_forced(name: str, ids: tuple[int, ...], vocabulary_size: int) -> None:
    for token in ids:
        if not 0 <= token < vocabulary_size:
            raise ModelError(
                f"{name}: forces a token that the model cannot say, got {token}; expected an id from 0 to "
                f"{vocabulary_size - 1}. Use the tokenizer and the generation_config.json that belong to the model."
            )


def as_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """What a generation config has as one token, as several, or not at all."""
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _below(ids: Sequence[int] | None, vocabulary_size: int) -> tuple[int, ...]:
    """The ids that exist; transformers ignores the others, such as -1 for none."""
    return tuple(token for token in ids or () if 0 <= token < vocabulary_size)
