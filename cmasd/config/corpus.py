"""The keys of what is read, and of where the outputs go."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class InputConfig:
    """Which rows are read."""

    path: str = ""
    """File, folder, glob, s3:// address, or the name of a Hugging Face dataset."""
    format: Literal["auto", "parquet", "jsonl", "csv", "text", "datasets", "audio"] = "auto"
    """`auto` goes by the file name's ending; `audio`: each file is a recording (wav, flac, ogg, opus, mp3)."""
    quote: Literal["auto", "double", "none"] = "auto"
    """`double`: CSV fields may stand in double quotes, and hold line ends there; `none`: quotes are plain characters;
    `auto`: double, but none in .tsv files."""
    change_check: Literal["auto", "content"] = "auto"
    """How a later start notices that a file has changed, on a storage without content tags: `content`: by every byte;
    `auto`: so for local input of up to 1 GiB in all, else by size, modification time and samples."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    sample: float = 1.0
    """Share of the shards that is decoded, chosen by their position alone; 1: all."""
    text_column: str = "text"
    """Column that holds the text to decode from."""
    messages_column: str | None = None
    """Column of conversations in place of texts: lists of messages with role and content, or their JSON; a name with
    dots looks inside (body.messages in OpenAI's batch files, of whose requests nothing else is read)."""
    id_column: str | None = None
    """Column that identifies a row; null: `<file>:<row number>`."""
    keep_columns: list[str] = field(default_factory=list)
    """Input columns copied to the output."""
    template: str | None = None
    """Prompt with `{text}` in it, e.g. "summarize: {text}"; null: the text alone."""
    chat: bool = False
    """Wrap each text in the tokenizer's chat template, as one user turn."""
    system: str | None = None
    """System message of each conversation that has none of its own, with `chat` or `messages_column`."""
    thinking: Literal["keep", "drop"] = "keep"
    """`drop`: what reasoning models write between <think> and </think> is left out of the output's text, and of the
    assistant's earlier turns; it is generated, and counted, in any case."""
    on_too_long: Literal["error", "truncate"] = "error"
    """What a source longer than `engine.max_source_tokens` gets: a row error, or its first tokens."""
    max_text_bytes: int = 1_000_000
    """A longer text is a row error, before anyone counts its tokens: no row may take a worker's memory."""

    @property
    def column(self) -> str:
        """What is decoded from."""
        return self.messages_column or self.text_column


@dataclass(frozen=True)
class OutputConfig:
    """Where the run is kept."""

    path: str = ""
    """Run folder, local or s3://: `outputs/*.parquet`, `manifest.json`, `summary.json`."""
    rows_per_shard: int | None = None
    """Rows read, decoded, written and resumed as one, in one output file; null: by input size. Fixed at first start."""
    show_rows: int = 0
    """Rows that `cmasd run` shows at its end, source beside output."""
