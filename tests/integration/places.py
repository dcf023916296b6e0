"""Where a harassed run is kept, on disk or on S3, seen past the faults that it meets itself."""

import io
import json
import os
from abc import ABC, abstractmethod
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cmasd.telemetry.clock import METADATA_KEY
from tests.faulty_s3 import BUCKET, spared_client


class Place(ABC):
    """Shards are counted as they appear, and the actors that wrote them told by their footers."""

    kind: str
    address: str
    poll_seconds: float

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._actors: set[str] = set()
        self.has_new_actor = False
        """Since it was last set to false."""
        self.actors_in_start = 0
        """New ones since it was last set to 0."""

    @property
    def shards(self) -> int:
        return len(self._seen)

    def look(self) -> bool:
        """Whether shards were written since the last look."""
        new = {name for name in self.names("outputs") if name.startswith("part-")} - self._seen
        for name in new:
            self._note(name)
        self._seen |= new
        return bool(new)

    def _note(self, name: str) -> None:
        notes = pq.read_metadata(io.BytesIO(self.read(f"outputs/{name}"))).metadata or {}
        actor = json.loads(notes[METADATA_KEY.encode()])["actor"]
        if actor not in self._actors:
            self._actors.add(actor)
            self.has_new_actor = True
            self.actors_in_start += 1

    def table(self) -> pa.Table:
        """All columns of all rows, by id."""
        names = [name for name in self.names("outputs") if name.endswith(".parquet")]
        tables = [pq.read_table(io.BytesIO(self.read(f"outputs/{name}"))) for name in names]
        plain = [table.replace_schema_metadata(None) for table in tables]
        return pa.concat_tables(plain).sort_by("id").combine_chunks()

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Of the files in a folder of the run, hidden ones included; of all of them where the name is empty."""

    @abstractmethod
    def read(self, name: str) -> bytes: ...


class OnDisk(Place):
    kind, poll_seconds = "disk", 0.1

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.address, self._folder = str(folder), folder

    def names(self, folder: str) -> list[str]:
        if not folder:
            return [path.name for path in self._folder.rglob("*")]
        try:
            return os.listdir(self._folder / folder)  # noqa: PTH208 - half as long as iterdir
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()


class OnS3(Place):
    kind, poll_seconds = "S3", 0.3

    def __init__(self, name: str) -> None:
        super().__init__()
        self.address, self._name, self._client = f"s3://{BUCKET}/{name}", name, spared_client()

    def names(self, folder: str) -> list[str]:
        prefix = f"{self._name}/{folder}/" if folder else f"{self._name}/"
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"].rsplit("/", 1)[-1] for page in pages for entry in page.get("Contents", [])]

    def read(self, name: str) -> bytes:
        body = self._client.get_object(Bucket=BUCKET, Key=f"{self._name}/{name}")["Body"].read()
        assert isinstance(body, bytes)
        return body
