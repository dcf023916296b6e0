"""The pair's joint vocabulary: byte-level BPE, so that no text is out of vocabulary."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cmasd.errors import ConfigError

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
SMALLEST = 256 + 3
"""Pieces of a vocabulary of bytes and special tokens alone."""


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of exactly `vocabulary_size` pieces; ids 0, 1, 2 are pad, eos, unk.

    Decoding gives back any text, up to Unicode normalisation (NFC): one space is put before the text and taken away
    again, and a text that spells a special token is read as plain characters.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Prepend(" ")])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[PAD, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (pieces := tokenizer.get_vocab_size()) != vocabulary_size:
        raise ConfigError(
            f"tokenizer.vocabulary_size: the texts give {pieces} pieces, got {vocabulary_size}; expected a number from "
            f"{SMALLEST} (every byte and the special tokens) to what the texts give. Change it, or add text."
        )
    eos_id = tokenizer.token_to_id(EOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, eos_id)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNK, split_special_tokens=True
    )


def read_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer written by `save_pretrained`."""
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer
