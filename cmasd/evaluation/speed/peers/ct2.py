"""CTranslate2 on the same requests: token ids in, token ids out, greedy.

The loaded verifier is converted by CTranslate2's own transformers converter, once, into a temporary folder that is
gone when the weights are in memory. Its vocabulary is the ids written as text, so no tokenizer takes part. Rules of
the checkpoint are passed on as far as CTranslate2 has them (banned words, n-grams, repetition, lengths, a forced first
token); the share of rows that equal plain decoding tells how far that is. Batches are static and sorted by length.

Each compute type decodes in a process of its own. Beside torch in one process, CTranslate2 shares torch's OpenMP
runtime, which then counts more threads than cores and puts them to sleep after every parallel region: all engines of
that process, ours and transformers' too, lose most of their speed. A batch may be decoded by one model with all
threads, by one with one, or in equal parts by models of one thread each; the first call tries these layouts and keeps
the fastest, for the first is ten times slower than the others on some machines.
"""

import copy
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from cmasd.checkpoints.by_name import Model
from cmasd.core import Request
from cmasd.engine import Pair
from cmasd.errors import ModelError
from cmasd.evaluation.speed.peers.hf import check_room

Made = TypeVar("Made")
TRIALS = 4
"""Of each layout; the first is for getting warm."""
CONVERTED = 6
"""Bytes of a weight: in float32 and in int8, and what is put together on the way."""
INSTALL = "pip install 'cmasd[bench]'"
NORMALISATION = {"BartConfig": (False, True), "MBartConfig": (True, True), "PegasusConfig": (True, False)}
"""Where layers normalise: before their sums, and after the embeddings. The converter reads it from the config, where
the original checkpoints have it; transformers itself writes none."""


class Layout(NamedTuple):
    """How CTranslate2 spreads a batch."""

    models: int
    """At work side by side, each on its own rows."""
    threads: int
    """Of each model."""


def layouts(threads: int, batch_size: int) -> list[Layout]:
    """What can be tried: a model has a row or more of the batch."""
    tried = [Layout(1, threads), Layout(1, 1), Layout(min(threads, batch_size), 1)]
    return list(dict.fromkeys(tried))


class Process:
    """CTranslate2 with the converted model, in a process that ends with this object; it sleeps while nobody asks."""

    def __init__(self, folder: str, kind: str, options: dict[str, Any], threads: int) -> None:
        """`options` are those of a model of that `kind`; raises what that raises. `folder` is read here."""
        self.threads = threads
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        self._pool.submit(_load, files, kind, options).result()

    def run(self, decode: Callable[..., Made], layout: Layout, *arguments: Any) -> tuple[Made, float]:
        """What `decode` of a module makes of the model and the arguments, and the seconds that it took there."""
        return self._pool.submit(_run, decode, layout, arguments).result()

    def fastest(self, layouts: list[Layout], seconds_of: Callable[[Layout], float], trials: int = TRIALS) -> Layout:
        """The layout that takes the least time, once warm."""
        seconds = {layout: min(seconds_of(layout) for _ in range(trials)) for layout in layouts}
        return min(layouts, key=seconds.__getitem__)


_models: dict[Layout, Any] = {}
_make: Callable[[Layout], Any]
"""Of this process, where it is one of `Process`."""


def _load(files: dict[str, bytes], kind: str, options: dict[str, Any]) -> None:
    import ctranslate2

    global _make
    make_one = getattr(ctranslate2, kind, None) or getattr(ctranslate2.models, kind)

    def make(layout: Layout) -> Any:
        return make_one("", files=files, inter_threads=layout.models, intra_threads=layout.threads, **options)

    _make = make
    _models[Layout(1, 1)] = make(Layout(1, 1))


def _run(decode: Callable[..., Made], layout: Layout, arguments: tuple[Any, ...]) -> tuple[Made, float]:
    model = _models.get(layout) or _models.setdefault(layout, _make(layout))
    started = time.perf_counter()
    outputs = decode(model, *arguments)
    return outputs, time.perf_counter() - started


def _decode(model: Any, rows: list[list[str]], options: dict[str, Any]) -> list[list[str]]:
    """Tokens of the best hypothesis by row."""
    if hasattr(model, "translate_batch"):
        return [result.hypotheses[0] for result in model.translate_batch(rows, **options)]
    return [result.sequences[0] for result in model.generate_batch(rows, **options)]


@dataclass(frozen=True)
class Converted:
    """The verifier in CTranslate2's memory, at one compute type."""

    process: Process
    vocabulary_size: int
    """Smaller than the verifier's by the padding where the converter cuts that off."""


class CTranslate2:
    """A converted model, decoding in batches of one size."""

    def __init__(self, pair: Pair, converted: Converted, batch_size: int) -> None:
        """`converted` is one of `load_ctranslate2`."""
        self.pair = pair
        self.process = converted.process
        self.batch_size = batch_size
        self.layout: Layout | None = None
        """The fastest, from the first call on."""
        self._options = _rules(pair, converted.vocabulary_size)
        self._names = [str(token) for token in range(converted.vocabulary_size)]

    def decode(self, requests: list[Request]) -> dict[int, list[int]]:
        """Token ids by request key."""
        if not requests:
            return {}
        rows = [[self._names[token] for token in request.source] for request in requests]
        most = [min(request.max_new_tokens, self.pair.room(len(request.source))) for request in requests]
        longest = max(most)
        options = {**self._options, **self._lengths(rows, longest)}
        if self.layout is None:
            tried = layouts(self.process.threads, self.batch_size)
            self.layout = self.process.fastest(tried, lambda layout: self._run(layout, rows, options)[1])
        outputs = self._run(self.layout, rows, options)[0]
        return {
            request.key: list(map(int, output))[:limit]
            for request, output, limit in zip(requests, outputs, most, strict=True)
        }

    def _run(self, layout: Layout, rows: list[list[str]], options: dict[str, Any]) -> tuple[list[list[str]], float]:
        own = {**options, "max_batch_size": self.batch_size // layout.models}
        return self.process.run(_decode, layout, rows, own)

    def _lengths(self, rows: list[list[str]], longest: int) -> dict[str, Any]:
        """And what else the two kinds of model call differently."""
        if not self.pair.is_encoder_decoder:
            least = self._least(start_tokens=min(map(len, rows)))
            return {"include_prompt_in_result": False, "max_length": longest, "min_length": least}
        forced = self.pair.constraints.forced_bos_token_id
        return {
            "target_prefix": None if forced is None else [[self._names[forced]]] * len(rows),
            "max_input_length": 0,
            "max_decoding_length": longest,
            "min_decoding_length": self._least(start_tokens=1),
        }

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
    if pair.device.type == "cpu":
        check_room(model, CONVERTED)
    device = pair.device.type
    own = str(model.dtype).removeprefix("torch.") if device != "cpu" else "float32"
    kind = "Whisper" if pair.sound is not None else "Translator" if pair.is_encoder_decoder else "Generator"
    with tempfile.TemporaryDirectory(prefix="cmasd-bench-") as folder:
        kept = convert(pair, model, Path(folder))
        try:
            loaded = {
                name: Process(folder, kind, {"device": device, "compute_type": name}, threads) for name in (own, "int8")
            }
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"ctranslate2: cannot load the model on {device} ({_first_line(error)}).") from error
    return {name: Converted(one, kept) for name, one in loaded.items()}


@torch.no_grad()
def convert(pair: Pair, verifier: Model, folder: Path) -> int:
    """Write a verifier of the pair in CTranslate2's format, float32, and return the size of its vocabulary.

    Raises `ModelError` for an architecture that its converter does not know.
    """
    # Some loaders take the model's layers away as they go, and change its config; large weights they leave as they are.
    is_whole = verifier.device.type == "cpu" and verifier.dtype == torch.float32
    shared = [weight for weight in verifier.parameters() if is_whole and weight.dim() > 1]
    model: Any = copy.deepcopy(verifier, {id(weight): weight for weight in shared}).float().cpu()
    loader = _loader(model)
    try:
        spec = loader.get_model_spec(model)
        kept = int(spec.decoder.projection.weight.shape[0])
        controls = _controls(pair)
        loader.set_vocabulary(spec, [controls.get(token, str(token)) for token in range(kept)])
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


def _controls(pair: Pair) -> dict[int, str]:
    """Names of tokens that CTranslate2's Whisper looks up; it has no others by name."""
    if pair.sound is None:
        return {}
    return {
        pair.sound.start: "<|startoftranscript|>",
        pair.constraints.eos_token_ids[0]: "<|endoftext|>",
        pair.sound.first_timestamp - 1: "<|notimestamps|>",
    }


def _describe(config: Any, pair: Pair, kept: int) -> None:
    """Special tokens, which must be among the `kept` ones; sources come with theirs, so none is added."""
    if pair.sound is not None:
        config.suppress_ids, config.suppress_ids_begin = [], list(pair.constraints.begin_suppressed)
        config.lang_ids = list(pair.sound.languages)
        return
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
