"""A tiny random Whisper with a vocabulary of its own: words, control tokens, three languages, timestamps."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from transformers import PreTrainedModel

from cmasd.signals import Float32

WORDS, END, START, NONE = 60, 60, 61, 67
LANGUAGES = {"en": 62, "de": 63, "fr": 64}
TASKS = {"translate": 65, "transcribe": 66}
PLACES, BINS, POSITIONS = 20, 8, 40
FIRST = NONE + 1
VOCABULARY = FIRST + PLACES + 1
FRAMES = 2 * PLACES
RATE, HOP = 16_000, 400
SAMPLES = FRAMES * HOP
"""Of a window."""


@torch.no_grad()
def tiny_whisper(seed: int = 0, layers: int = 2, words_gain: float = 2.0) -> PreTrainedModel:
    """In eval mode, float32; weights large enough that what is heard and said before decides what is said."""
    config = hf.WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=2,
        decoder_layers=layers,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_mel_bins=BINS,
        max_source_positions=PLACES,
        max_target_positions=POSITIONS,
        pad_token_id=END,
        bos_token_id=END,
        eos_token_id=END,
        decoder_start_token_id=START,
        begin_suppress_tokens=None,
        suppress_tokens=None,
        tie_word_embeddings=False,
    )
    model: Any = hf.WhisperForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.ndim >= 2 and "embed_positions" not in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7 / 32**0.5)
        elif parameter.requires_grad and parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    for layer in model.model.decoder.layers:
        layer.encoder_attn.out_proj.weight.mul_(4)  # what is heard counts
    model.proj_out.weight[FIRST:].mul_(0.6)
    model.proj_out.weight[FIRST].zero_()  # a window that ends where it begins is begun again by `generate`, for ever
    model.proj_out.weight[END].mul_(0.8)
    model.model.decoder.embed_tokens.weight.mul_(words_gain)
    model.model.decoder.embed_positions.weight.copy_(torch.randn(POSITIONS, 32, generator=generator) * 0.5)
    model.generation_config = generation_config()
    whisper: PreTrainedModel = model.eval()
    return whisper


def generation_config(**changed: Any) -> Any:
    """As checkpoints of Whisper have it."""
    settings = {
        "decoder_start_token_id": START,
        "eos_token_id": END,
        "pad_token_id": END,
        "bos_token_id": END,
        "max_length": POSITIONS,
        "no_timestamps_token_id": NONE,
        "is_multilingual": True,
        "lang_to_id": {f"<|{name}|>": token for name, token in LANGUAGES.items()},
        "task_to_id": TASKS,
        "suppress_tokens": [3, 5, START, 65, 66],
        "begin_suppress_tokens": [7, END],
        "return_timestamps": False,
        **changed,
    }
    return hf.GenerationConfig(**settings)


def extractor() -> Any:
    """Of windows of a second."""
    return hf.WhisperFeatureExtractor(feature_size=BINS, chunk_length=1, n_fft=400, hop_length=HOP)


def noise(samples: int, seed: int = 0) -> Float32:
    """A recording of so many samples, whose loudness and colour change."""
    random = np.random.default_rng(seed)
    steps = np.arange(samples)
    tones = sum(np.sin(steps * f / RATE * 6.283 * (1 + steps / samples)) for f in random.uniform(100, 6000, 4))
    sound: Float32 = (0.1 * random.standard_normal(samples) * np.sin(steps / 900) + 0.2 * tones).astype(np.float32)
    return sound


def save(folder: Path, seed: int = 0, layers: int = 2) -> None:
    """As a checkpoint, with a tokenizer of numbered words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    names = [f"\u0120w{number}" for number in range(WORDS)]
    control = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{name}|>" for name in LANGUAGES)]
    control += ["<|translate|>", "<|transcribe|>", "<|notimestamps|>"]
    times = [f"<|{place * 0.05:.2f}|>" for place in range(PLACES + 1)]
    vocabulary = {name: token for token, name in enumerate([*names, *control, *times])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=control[0], unk_token=control[0], additional_special_tokens=control
    )
    tiny_whisper(seed, layers).save_pretrained(folder)
    fast.save_pretrained(folder)
    extractor().save_pretrained(folder)
