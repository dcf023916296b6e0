"""The keys of recordings: how they are read, and what their decoding begins with."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SpeechConfig:
    """Recordings, for a verifier that hears (Whisper)."""

    audio_column: str | None = None
    """Column of the recordings, in place of `input.text_column`: encoded bytes, a path beside the input, or both as
    Hugging Face's `Audio` has them; null: texts are decoded, or the audio files of `input.path` themselves."""
    language: str | None = None
    """What is spoken, such as en; null: found out by the model, from the first window of each recording."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """`translate`: into English."""
    timestamps: bool = False
    """Whether the model tells when words are said, as tokens among the others; in recordings longer than its window it
    does in any case, and the next window begins where the last whole segment ends."""
    output: Literal["text", "segments"] = "text"
    """`text`: what is said; `segments`: JSON, a list of {"start", "end", "text"} in seconds, wherever there are
    timestamps."""
    language_column: str | None = None
    """Column with each recording's own `language`, where it is not null."""
    task_column: str | None = None
    """Column with each recording's own `task`, where it is not null."""
    timestamps_column: str | None = None
    """Column with each recording's own `timestamps`, where it is not null."""
    max_seconds: float = 14400.0
    """A longer recording is a row error: no row may take a worker's memory."""

    @property
    def columns(self) -> dict[str, str]:
        """Settings of recordings that have a column, and that column."""
        named = {"language": self.language_column, "task": self.task_column, "timestamps": self.timestamps_column}
        return {name: column for name, column in named.items() if column is not None}
