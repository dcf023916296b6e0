"""CTranslate2 on the same requests: token ids in, token ids out, greedy.

The loaded verifier is converted by CTranslate2's own transformers converter, once, into a temporary folder that is
gone when the weights are in memory. Its vocabulary is the ids written as text, so no tokenizer takes part. Rules of
the checkpoint are passed on as far as CTranslate2 has them (banned words, n-grams, repetition, lengths, a forced first
token); the share of rows that equal plain decoding tells how far that is. Batches are static and sorted by length.
"""

import copy
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from cmasd.core import Request
from cmasd.engine import Pair
from cmasd.errors import ModelError
from cmasd.runner.models import Model

INSTALL = "pip install 'cmasd[bench]'"
NORMALISATION = {"BartConfig": (False, True), "MBartConfig": (True, True), "PegasusConfig": (True, False)}
"""Where layers normalise: before their sums, and after the embeddings. The converter reads it from the config, where
the original checkpoints have it; transformers itself writes none."""


@dataclass(frozen=True)
class Converted:
    """The verifier in CTranslate2's memory, at one compute type."""

    model: Any
    """A Translator, or a Generator for a decoder-only model."""
    vocabulary_size: int
    """Smaller than the verifier's by the padding where the converter cuts that off."""


class CTranslate2:
    """A converted model, decoding in batches of one size."""

    def __init__(self, pair: Pair, converted: Converted, batch_size: int) -> None:
        """`converted` is one of `load_ctranslate2`."""
        self.pair = pair
        self.model = converted.model
        self.batch_size = batch_size
        self._options = _rules(pair, converted.vocabulary_size)
        self._names = [str(token) for token in range(converted.vocabulary_size)]

    def decode(self, requests: list[Request]) -> dict[int, list[int]]:
        """Token ids by request key."""
        if not requests:
            return {}
        rows = [[self._names[token] for token in request.source] for request in requests]
        longest = max(request.max_new_tokens for request in requests)
        outputs = self._translate(rows, longest) if self.pair.is_encoder_decoder else self._continue(rows, longest)
        return {
            request.key: list(map(int, output))[: request.max_new_tokens]
            for request, output in zip(requests, outputs, strict=True)
        }

    def _translate(self, rows: list[list[str]], longest: int) -> list[list[str]]:
        forced = self.pair.constraints.forced_bos_token_id
        results = self.model.translate_batch(
            rows,
            target_prefix=None if forced is None else [[self._names[forced]]] * len(rows),
            max_input_length=0,
            max_decoding_length=longest,
            min_decoding_length=self._least(start_tokens=1),
            max_batch_size=self.batch_size,
            **self._options,
        )
        return [result.hypotheses[0] for result in results]

    def _continue(self, rows: list[list[str]], longest: int) -> list[list[str]]:
        results = self.model.generate_batch(
            rows,
            include_prompt_in_result=False,
            max_length=longest,
            min_length=self._least(start_tokens=min(map(len, rows))),
            max_batch_size=self.batch_size,
            **self._options,
        )
        return [result.sequences[0] for result in results]

    def _least(self, start_tokens: int) -> int:
        """Tokens before an end of sequence is allowed."""
        constraints = self.pair.constraints
        return max(0, constraints.min_new_tokens, constraints.min_length - start_tokens)


def load_ctranslate2(pair: Pair, model: Model, threads: int) -> dict[str, Converted]:
    """A verifier of the pair in CTranslate2, by compute type: its own (float32 on a CPU), and int8.

    Raises `ModelError` where CTranslate2 is not installed or cannot convert the architecture.
    """
    if find_spec("ctranslate2") is None:
        raise ModelError(f"ctranslate2: is not installed. {INSTALL} adds it.")
    import ctranslate2

    device = pair.device.type
    own = str(model.dtype).removeprefix("torch.") if device != "cpu" else "float32"
    kind = ctranslate2.Translator if pair.is_encoder_decoder else ctranslate2.Generator
    with tempfile.TemporaryDirectory(prefix="cmasd-bench-") as folder:
        kept = convert(pair, model, Path(folder))
        options = {"device": device, "inter_threads": 1, "intra_threads": threads}
        try:
            loaded = {name: kind(folder, compute_type=name, **options) for name in (own, "int8")}
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"ctranslate2: cannot load the model on {device} ({_first_line(error)}).") from error
    return {name: Converted(one, kept) for name, one in loaded.items()}


@torch.no_grad()
def convert(pair: Pair, verifier: Model, folder: Path) -> int:
    """Write a verifier of the pair in CTranslate2's format, float32, and return the size of its vocabulary.

    Raises `ModelError` for an architecture that its converter does not know.
    """
    # Some loaders take the model's layers away as they go, and change its config.
    model: Any = copy.deepcopy(verifier).float().cpu()
    loader = _loader(model)
    try:
        spec = loader.get_model_spec(model)
        kept = int(spec.decoder.projection.weight.shape[0])
        loader.set_vocabulary(spec, [str(token) for token in range(kept)])
        _describe(spec.config, pair, kept)
        spec.validate()
        spec.optimize(quantization="float32")
        spec.save(str(folder))
    except Exception as error:  # its loaders raise what their models make them
        architecture = type(model).__name__
        raise ModelError(f"ctranslate2: cannot convert {architecture} ({_first_line(error)}).") from error
    return kept


def _loader(model: Any) -> Any:
    from ctranslate2.converters import transformers

    name = type(model.config).__name__
    loader = transformers._MODEL_LOADERS.get(name)
    if loader is None:
        raise ModelError(f"ctranslate2: its converter does not know {name}.")
    for key, value in zip(("normalize_before", "normalize_embedding"), NORMALISATION.get(name, ()), strict=False):
        if not hasattr(model.config, key):
            setattr(model.config, key, value)
    padding = model.config.pad_token_id
    if name == "MarianConfig" and padding != model.config.vocab_size - 1:
        return _marian_loader(transformers.MarianMTLoader)
    return loader


def _marian_loader(stock: Any) -> Any:
    """The stock loader cuts off the last token as the padding; this is for a checkpoint that has it elsewhere."""

    class MarianLoader(stock):  # type: ignore[misc]
        def _remove_pad_weights(self, spec: Any) -> None:
            """Every token stays."""

        def set_decoder(self, spec: Any, decoder: Any) -> None:
            """The start token has an embedding like any other."""
            super().set_decoder(spec, decoder)
            spec.start_from_zero_embedding = False

    return MarianLoader()


def _describe(config: Any, pair: Pair, kept: int) -> None:
    """Special tokens, which must be among the `kept` ones; sources come with theirs, so none is added."""
    ends = pair.constraints.eos_token_ids or (0,)
    config.eos_token = config.bos_token = config.unk_token = str(ends[0])
    if pair.is_encoder_decoder:
        start = pair.decoder_start[0]
        # A start token that was cut off is a zero embedding, whatever it is called.
        config.decoder_start_token = str(start if start < kept else ends[0])
        config.add_source_bos = config.add_source_eos = False


def _rules(pair: Pair, kept: int) -> dict[str, Any]:
    """Options that both kinds of model take; a banned token that was cut off needs no ban."""
    rules = pair.constraints
    words = [*rules.banned_words, *((token,) for token in (*rules.banned, *rules.suppressed))]
    banned = [[str(token) for token in word] for word in words if max(word) < kept]
    return {
        "beam_size": 1,
        "return_end_token": True,
        "end_token": [str(token) for token in rules.eos_token_ids] or None,
        "suppress_sequences": banned or None,
        "no_repeat_ngram_size": rules.no_repeat_ngram_size,
        "repetition_penalty": rules.repetition_penalty,
    }


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
