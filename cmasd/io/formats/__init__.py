"""Input formats: Parquet, JSON lines, CSV, text lines, Hugging Face datasets, and files that are recordings."""

from cmasd.io.formats.audio import AudioFiles
from cmasd.io.formats.base import Format, ReadSpec, Source
from cmasd.io.formats.delimited import Csv
from cmasd.io.formats.huggingface import ArrowFiles, HubDataset
from cmasd.io.formats.jsonl import JsonLines
from cmasd.io.formats.parquet import Parquet
from cmasd.io.formats.text import TextLines

FORMATS: dict[str, Format] = {
    "parquet": Parquet(),
    "jsonl": JsonLines(),
    "csv": Csv(),
    "text": TextLines(),
    "audio": AudioFiles(),
    "arrow": ArrowFiles(),
    "hub": HubDataset(),
}
"""By the name a plan stores; `arrow` and `hub` are the two faces of `input.format: datasets`."""

__all__ = ["FORMATS", "Format", "ReadSpec", "Source"]
