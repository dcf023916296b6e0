"""Recordings to samples: any file that libsndfile reads, of any rate and any channels, to 16 kHz in one channel.

Read in blocks, so that an hour costs its 16 kHz samples and no more. What cannot be heard raises `Unheard` with the
reason, and its row alone fails; a storage that fails raises its own error. soundfile and soxr are the extra `audio`.
"""

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmasd.errors import ConfigError, StorageAccessError
from cmasd.io.formats.base import one_line, printable
from cmasd.io.storage import Storage

RATE = 16_000
"""Samples a second, as Whisper hears."""
BLOCK_SECONDS = 30
WHOLE = ("FLAC", "WAV", "WAVEX", "RF64", "W64", "AIFF", "AU")
"""Formats whose header says for certain how long they are: an earlier end is damage."""
Samples = NDArray[np.float32]


class Unheard(ValueError):
    """Why a recording has no samples."""


class Listener:
    """Opens and decodes recordings of one input."""

    def __init__(self, address: str, most_seconds: float) -> None:
        """`address`: `input.path`, whose storage holds what rows name by a path."""
        _libraries()
        self._storage = Storage(address)
        self._most_seconds = most_seconds

    def __call__(self, recording: object) -> Samples:
        """Of a `RECORDING`, or bytes, or a path; samples at 16 kHz are taken as they are. Raises `Unheard`."""
        if isinstance(recording, np.ndarray):
            return self._given(recording)
        with self._opened(recording) as stream:
            return decoded(stream, self._most_seconds)

    def seconds(self, recording: object) -> float | None:
        """By the header; null where that does not tell."""
        soundfile, _ = _libraries()
        try:
            with self._opened(recording) as stream, soundfile.SoundFile(stream) as sound:
                return sound.frames / sound.samplerate if 0 <= sound.frames < 2**48 and sound.samplerate > 0 else None
        except (Unheard, RuntimeError, OSError):
            return None

    def _given(self, samples: NDArray[Any]) -> Samples:
        if samples.ndim != 1 or samples.dtype.kind != "f":
            got = f"{samples.dtype} of shape {samples.shape}"
            raise Unheard(f"samples must be one row of floating-point numbers at 16 kHz, got {got}")
        if len(samples) > self._most_seconds * RATE:
            raise Unheard(_too_long(self._most_seconds))
        return _sound(samples.astype(np.float32), len(samples))

    def _opened(self, recording: object) -> Any:
        value = recording
        if isinstance(value, Mapping):
            value = value["path"] if value.get("bytes") is None else value["bytes"]
        if isinstance(value, bytes):
            return io.BytesIO(value)
        if not isinstance(value, str):
            raise Unheard(f"the row is no recording, got {type(recording).__name__}; expected bytes or a path")
        try:
            if self._storage.is_local:
                return Path(value).open("rb")
            return io.BytesIO(self._storage.read(value))  # decoders swallow what a storage raises
        except FileNotFoundError:
            raise Unheard(f"there is no recording at {printable(value)}") from None
        except (OSError, ValueError, StorageAccessError) as error:
            raise Unheard(f"the recording at {printable(value)} cannot be opened ({one_line(error)})") from None


def decoded(stream: Any, most_seconds: float) -> Samples:
    """All samples of an encoded file, one channel at 16 kHz. Raises `Unheard`."""
    soundfile, _ = _libraries()
    try:
        with soundfile.SoundFile(stream) as sound:
            return _resampled(sound, most_seconds)
    except (RuntimeError, OSError) as error:
        said = str(getattr(error, "error_string", error)).removeprefix("Error : ")
        raise Unheard(f"the recording cannot be decoded ({one_line(ValueError(said))})") from None


def _resampled(sound: Any, most_seconds: float) -> Samples:
    _, soxr = _libraries()
    rate = sound.samplerate
    if rate <= 0:
        raise Unheard(f"the recording has {rate} samples a second")
    resampler = None if rate == RATE else soxr.ResampleStream(rate, RATE, 1, dtype="float32")
    parts: list[Samples] = []
    total, block_frames = 0, min(BLOCK_SECONDS * rate, 2**22)
    while len(block := sound.read(block_frames, dtype="float32", always_2d=True)):
        total += len(block)
        if total > most_seconds * rate:
            raise Unheard(_too_long(most_seconds))
        one = block.mean(axis=1) if block.shape[1] > 1 else block[:, 0]
        parts.append(one if resampler is None else resampler.resample_chunk(np.ascontiguousarray(one)))
    if resampler is not None:
        parts.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    if total < sound.frames and sound.format in WHOLE:
        raise Unheard(
            f"the recording ends after {total / rate:.1f} of {sound.frames / rate:.1f} seconds: it is damaged"
        )
    return _sound(np.concatenate([*parts, np.zeros(0, np.float32)]), total)


def _sound(samples: Samples, total: int) -> Samples:
    """The same, if there are any and all are numbers."""
    if total == 0 or len(samples) == 0:
        raise Unheard("the recording has no samples")
    if not math.isfinite(float(np.abs(samples).sum(dtype=np.float64))):
        raise Unheard("the recording holds samples that are no numbers")
    return samples


def _too_long(most_seconds: float) -> str:
    return f"the recording is longer than {most_seconds:g} seconds (speech.max_seconds)"


def _libraries() -> tuple[Any, Any]:
    """soundfile and soxr; raises `ConfigError`."""
    try:
        import soundfile
        import soxr
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"speech: recordings are decoded by soundfile and soxr, of which one cannot be loaded ({one_line(error)}). "
            "Install the extra: pip install 'cmasd[audio]'."
        ) from None
    return soundfile, soxr
