"""Models and tokenizers by name: a bundled pair, a folder, or the Hugging Face hub.

Every way in which loading goes wrong becomes a one-line ModelError. Two traps of transformers are closed here: weights
that a checkpoint lacks are initialised at random with a warning only, and a folder without tokenizer files gives an
empty tokenizer for some families. Weights are read from safetensors; pickles run code and need `allow_pickle`.
Where the hub cannot be reached its local cache serves, without the half minute of retries that the client makes.
"""

import json
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cmasd.errors import ModelError

PAIRS = Path(__file__).resolve().parents[1] / "pairs"
"""The bundled pairs: `<pair>/<model>` below this folder is a model's name."""

SHORTLIST = "shortlist.json"
"""In a drafter's folder: a list of token ids, most frequent first."""

DtypeName = Literal["auto", "float32", "bfloat16", "float16", "float64", "int8"]

Model = PreTrainedModel
"""A loaded model, by a name that rooms without transformers can import."""
Tokenizer = PreTrainedTokenizerBase
"""A loaded tokenizer, likewise."""

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "vocab.json",
    "vocab.txt",
)
LOADING_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RuntimeError,
    ImportError,
    SafetensorError,
    UnpicklingError,
)


def bundled_names() -> list[str]:
    """Names of the models that come with the package, such as `en-de/verifier`."""
    return sorted(path.parent.relative_to(PAIRS).as_posix() for path in PAIRS.glob("**/config.json"))


def resolve(name: str) -> Path | str:
    """The folder of a bundled pair or of an existing path; any other name is left for the hub."""
    if not name.strip():
        raise ModelError(f"models: a name is empty, got {name!r}; expected a model. {_advice()}")
    if name in bundled_names():
        return PAIRS / name
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{name}: is a file; expected a model folder. Name the folder that holds config.json.")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ModelError(f"{name}: no such model folder. {_advice()}")
    return name


def load_config(name: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """A model's configuration, without its weights."""
    source = resolve(name)
    if isinstance(source, Path) and not (source / "config.json").is_file():
        raise ModelError(f"{name}: no config.json in the folder; expected a model in Hugging Face format. {_advice()}")
    config = _from_pretrained(AutoConfig, name, source, "the configuration", trust_remote_code=trust_remote_code)
    if not trust_remote_code:
        _check_kernels(name, config)
    return cast(PretrainedConfig, config)


def load_model(
    name: str,
    dtype: DtypeName,
    device: str | torch.device,
    *,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> PreTrainedModel:
    """Load a model for inference.

    `auto` is float32 on a CPU, where half-precision kernels are slow or missing, and the checkpoint's own elsewhere.
    """
    source = resolve(name)
    config = load_config(name, trust_remote_code=trust_remote_code)
    if isinstance(source, Path):
        _check_weights(name, source, allow_pickle)
    model, report = _from_pretrained(
        _factory(config),
        name,
        source,
        "the weights",
        config=config,
        dtype=_torch_dtype(dtype, torch.device(device)),
        use_safetensors=None if allow_pickle else True,
        output_loading_info=True,
        trust_remote_code=trust_remote_code,
    )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{name}: the checkpoint lacks {len(missing)} tensors that its config.json calls for, the first is "
            f"{missing[0]}. Copy the folder again, or mend config.json."
        )
    return cast(PreTrainedModel, model.requires_grad_(False).eval().to(device))


def _factory(config: PretrainedConfig) -> Any:
    if config.model_type == "whisper":
        return AutoModelForSpeechSeq2Seq
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def load_feature_extractor(name: str) -> Any:
    """What makes an encoder's features of samples."""
    return _from_pretrained(AutoFeatureExtractor, name, resolve(name), "the feature extractor")


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A model's tokenizer."""
    source = resolve(name)
    if isinstance(source, Path):
        _check_tokenizer_files(name, source)
    tokenizer = _from_pretrained(AutoTokenizer, name, source, "the tokenizer", trust_remote_code=trust_remote_code)
    _check_tokenizer_files(name, source)
    return cast(PreTrainedTokenizerBase, tokenizer)


def load_shortlist(name: str) -> list[int]:
    """The ids in a drafter's `shortlist.json`, most frequent first; `cmasd train` writes it."""
    source = resolve(name)
    path = source / SHORTLIST if isinstance(source, Path) else None
    try:
        ids = json.loads(path.read_text()) if path is not None else None
        if isinstance(ids, list) and ids and all(isinstance(one, int) for one in ids):
            return ids
    except (OSError, ValueError):
        pass
    raise ModelError(
        f"drafter.shortlist: {name} has no {SHORTLIST}, which lists its frequent tokens. Set drafter.shortlist=null, "
        "or train the drafter with cmasd train, which writes that file."
    )


def check_pair(
    verifier_config: PretrainedConfig,
    drafter_config: PretrainedConfig,
    verifier_tokenizer: PreTrainedTokenizerBase,
    drafter_tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    """Raise ModelError unless a draft by the one model can be verified by the other.

    A drafter that comes without a tokenizer (None) is taken to share the verifier's when the vocabulary sizes agree.
    Sizes may differ by padding: columns that neither tokenizer has a piece for.
    """
    kinds = [_kind(verifier_config), _kind(drafter_config)]
    if kinds[0] != kinds[1]:
        raise ModelError(
            f"models.drafter: must have the verifier's architecture, got {kinds[1]} ({drafter_config.model_type}); "
            f"expected {kinds[0]} ({verifier_config.model_type}). Choose a drafter of the verifier's family."
        )
    sizes = [vocabulary_size(verifier_config), vocabulary_size(drafter_config)]
    tokenizers = [one for one in (verifier_tokenizer, drafter_tokenizer) if one is not None]
    is_padding = len(tokenizers) == 2 and all(max(one.get_vocab().values()) < min(sizes) for one in tokenizers)
    if sizes[0] != sizes[1] and not is_padding:
        raise _disagreement(f"{sizes[0]} vs {sizes[1]} tokens")
    if drafter_tokenizer is not None:
        _check_pieces(verifier_tokenizer, drafter_tokenizer)


def vocabulary_size(config: PretrainedConfig) -> int:
    """Width of the model's output layer, in tokens."""
    if size := getattr(config, "decoder_vocab_size", None):
        return int(size)
    return int(config.get_text_config(decoder=True).vocab_size)


def source_vocabulary(model: Model) -> int:
    """Rows of the table that reads sources, or prompts."""
    reader: Any = model.get_encoder() if model.config.is_encoder_decoder else model
    return int(reader.get_input_embeddings().weight.shape[0])


def _check_pieces(verifier_tokenizer: PreTrainedTokenizerBase, drafter_tokenizer: PreTrainedTokenizerBase) -> None:
    """Both may know ids that the other lacks (added tokens); an id that both know must be the same piece."""
    verifier_pieces = {index: piece for piece, index in verifier_tokenizer.get_vocab().items()}
    drafter_pieces = {index: piece for piece, index in drafter_tokenizer.get_vocab().items()}
    shared = verifier_pieces.keys() & drafter_pieces.keys()
    differing = sorted(index for index in shared if verifier_pieces[index] != drafter_pieces[index])
    if differing or not shared:
        first = differing[0] if differing else min(verifier_pieces)
        raise _disagreement(
            f"{len(differing)} of {len(shared)} ids differ, the first is {first}: "
            f"{drafter_pieces.get(first)!r} vs {verifier_pieces.get(first)!r}"
        )


def _disagreement(what: str) -> ModelError:
    return ModelError(
        f"Drafter and verifier disagree on the vocabulary: {what}. "
        "Speculative decoding compares token ids, so both must share one tokenizer."
    )


def _check_tokenizer_files(name: str, source: Path | str) -> None:
    for file in _TOKENIZER_FILES:
        found = source / file if isinstance(source, Path) else try_to_load_from_cache(source, file)
        if isinstance(found, str | Path) and Path(found).is_file():
            return
    raise ModelError(
        f"{name}: no tokenizer next to the model; expected one of {', '.join(_TOKENIZER_FILES)}. "
        "Save the tokenizer into the model's folder with save_pretrained."
    )


def _check_kernels(name: str, config: PretrainedConfig) -> None:
    """A configuration may name a repository whose compiled kernels transformers would fetch and run."""
    for key in ("_attn_implementation", "_experts_implementation"):
        value = getattr(config, key, None)
        if "/" in str(value):
            raise ModelError(
                f"{name}: config.json asks for code from the hub, got {key.strip('_')} {value!r}; expected one that "
                "transformers has. Remove it or, where you trust its author, set models.trust_remote_code=true."
            )
    for part in getattr(config, "sub_configs", None) or ():
        if (inner := getattr(config, part, None)) is not None:
            _check_kernels(name, inner)


def _check_weights(name: str, folder: Path, allow_pickle: bool) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if not pickles:
        raise ModelError(f"{name}: no weights in the folder; expected model.safetensors. {_advice()}")
    if not allow_pickle:
        raise ModelError(
            f"{name}: weights are in pickle format, got {pickles[0]}; expected model.safetensors. "
            "Convert it with save_pretrained, or, where you trust its author, set models.allow_pickle=true."
        )


def _from_pretrained(factory: Any, name: str, source: Path | str, what: str, **options: Any) -> Any:
    """`factory.from_pretrained` in silence, with its failures told in one line."""
    try:
        with in_silence():
            return factory.from_pretrained(source, local_files_only=is_local(source), **options)
    except LOADING_ERRORS as error:
        raise ModelError(_explain(name, source, what, error)) from error


def is_local(source: Path | str) -> bool:
    """Whether nothing is to be asked of the hub."""
    return isinstance(source, Path) or not _hub_is_reachable()


def _hub_is_reachable() -> bool:
    """Whether the hub's name resolves; behind a proxy it need not."""
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        return bool(getproxies() or socket.getaddrinfo(host, None))
    except OSError:
        return False


def _explain(name: str, source: Path | str, what: str, error: Exception) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if isinstance(error, SafetensorError):
        return f"{name}: {what} cannot be read, the safetensors file is damaged ({reason}). Copy or download it again."
    if "ignore_mismatched_sizes" in reason:
        return f"{name}: {what} do not have the shapes that config.json calls for. Copy the whole folder again."
    if isinstance(source, str) and isinstance(error, OSError):
        return f"{name}: {what} cannot be had from the Hugging Face hub ({reason.rstrip('.')}). {_advice()}"
    if "trust_remote_code" in str(error):
        return (
            f"{name}: {what} needs the repository's own code, which is not run by itself. "
            "Where you trust its author, set models.trust_remote_code=true."
        )
    return f"{name}: {what} cannot be loaded: {reason[:300].rstrip('.')}. Check the files in the folder."


def _advice() -> str:
    bundled = ", ".join(bundled_names()) or "none"
    return f"Give an existing folder, a hub name, or a bundled model ({bundled})."


def _kind(config: PretrainedConfig) -> str:
    return "an encoder-decoder model" if config.is_encoder_decoder else "a decoder-only model"


def _torch_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    if dtype == "int8":
        return torch.float32  # runners quantise
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    return cast(torch.dtype, getattr(torch, dtype))


@contextmanager
def in_silence() -> Iterator[None]:
    """Libraries do not speak here: what a user must know is in an exception, and progress is the job's to show."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        yield
