"""Storage on S3 that fails now and then, or for good: what is retried, what is told, what is left behind."""

import json
import time
from collections.abc import Iterator

import boto3
import pytest

from cmasd.errors import CmasdError, RunInUseError, StorageAccessError, StorageError
from cmasd.io import storage as storage_module
from cmasd.io.lease import Lease, newest_lease
from cmasd.io.storage import Storage
from tests.faulty_s3 import BUCKET, MUTE_SECONDS, SECRET, TOKEN, Fault, FaultyS3, faulty_s3
from tests.unit.io.test_formats import config, read

KEY = f"{BUCKET}/run/file"
DATA = b"0123456789" * 20_000
PASSING = ["internal", "unavailable", "slow_down", "drop"]


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    with faulty_s3() as layer:
        yield layer


@pytest.fixture
def s3(server: FaultyS3) -> FaultyS3:
    server.faults.clear()
    server.injected.clear()
    server.requests.clear()
    return server


@pytest.fixture
def storage(s3: FaultyS3) -> Storage:
    return Storage(f"s3://{BUCKET}/run")


@pytest.mark.parametrize("kind", PASSING)
def test_writing_outlasts_passing_faults(s3: FaultyS3, storage: Storage, kind: str) -> None:
    s3.faults = [Fault(kind, 2, "PUT")]
    storage.write(KEY, DATA)
    assert s3.injected == {kind: 2}
    assert storage.read(KEY) == DATA


@pytest.mark.parametrize("create", [False, True])
def test_a_put_without_an_answer_is_begun_anew(
    s3: FaultyS3, storage: Storage, create: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client itself waits much longer, and for ever where it waits to be told to continue."""
    monkeypatch.setattr(storage_module, "PUT_SECONDS", 1.0)
    storage.delete(KEY)
    s3.faults = [Fault("mute", 1, "PUT")]
    before = time.monotonic()
    if create:
        assert storage.create(KEY, DATA)
    else:
        storage.write(KEY, DATA)
    assert time.monotonic() - before < MUTE_SECONDS
    assert s3.injected == {"mute": 1}
    assert storage.read(KEY) == DATA


@pytest.mark.parametrize("kind", [*PASSING, "cut"])
def test_reading_outlasts_passing_faults(s3: FaultyS3, storage: Storage, kind: str) -> None:
    storage.write(KEY, DATA)
    s3.faults = [Fault(kind, 2, "GET", "run/file")]
    assert storage.read(KEY) == DATA
    assert s3.injected == {kind: 2}
    s3.faults = [Fault(kind, 2, "GET", "run/file")]
    with storage.open(KEY) as stream:
        assert stream.read() == DATA
    assert s3.injected == {kind: 4}


@pytest.mark.parametrize("kind", ["internal", "drop"])
def test_an_outage_is_told_with_exit_code_1_and_leaves_nothing(s3: FaultyS3, storage: Storage, kind: str) -> None:
    storage.delete(KEY)
    s3.faults = [Fault(kind, 1000, "PUT")]
    with pytest.raises(StorageError, match=rf"^s3://{KEY}: cannot be written: .* Run the same command again"):
        storage.write(KEY, DATA)
    s3.faults.clear()
    assert storage.files(storage.root) == []


def test_an_outage_while_a_file_is_read_is_no_bad_content(s3: FaultyS3, storage: Storage) -> None:
    storage.write(KEY, DATA)
    with storage.open(KEY) as stream:
        s3.faults = [Fault("internal", 1000, "GET")]
        with pytest.raises(StorageError, match="cannot be read"):
            stream.read()


def test_a_creation_whose_answer_was_lost_is_no_other_process(s3: FaultyS3, storage: Storage) -> None:
    """The retry finds the file that the first try made; a lease knows its own record."""
    s3.faults = [Fault("lost", 1, "PUT", "leases/000001.json")]
    with Lease(storage, "RUN", "run", after=None) as held:
        held.check()
    assert s3.injected == {"lost": 1}
    s3.faults = [Fault("lost", 1, "PUT", "leases/000002.json")]
    seen = newest_lease(storage)
    with Lease(storage, "RUN", "run", after=seen), pytest.raises(RunInUseError, match="is in use by"):
        Lease(storage, "RUN", "run", after=seen).__enter__()
    storage.delete_folder(storage.root)


def test_an_outage_at_the_end_leaves_a_lease_that_expires(s3: FaultyS3, storage: Storage) -> None:
    with Lease(storage, "RUN", "run", after=None) as held:
        s3.faults = [Fault("internal", 1000, "PUT")]
    s3.faults.clear()
    assert newest_lease(storage) == held.record, "not released, and nothing was raised"
    storage.delete_folder(storage.root)


OPERATIONS = ["write", "read", "is_file", "is_folder", "files", "info", "glob", "delete"]


def call(storage: Storage, operation: str) -> None:
    getattr(storage, operation)(*([KEY, DATA] if operation == "write" else [KEY + "*"[operation != "glob" :]]))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_refusal_is_never_taken_for_an_empty_folder(s3: FaultyS3, storage: Storage, operation: str) -> None:
    for kind, error, said in (("denied", StorageAccessError, "access is denied"), ("expired", StorageError, "expired")):
        storage.fs.invalidate_cache()
        s3.faults = [Fault(kind, 1000)]
        with pytest.raises(error, match=rf"^s3://{BUCKET}/run/file.*: cannot be .*{said}") as caught:
            call(storage, operation)
        assert SECRET not in str(caught.value)
        assert TOKEN not in str(caught.value)


def test_absent_things_are_no_refusal(s3: FaultyS3, storage: Storage) -> None:
    assert not storage.is_file(f"{BUCKET}/nothing")
    assert not storage.is_folder("no-such-bucket/nothing")
    assert storage.files(f"{BUCKET}/nothing") == storage.files("no-such-bucket/nothing") == []
    for pattern in (f"{BUCKET}/nothing*", "no-such-bucket/*", "no-such-bucket/**/*.jsonl", "no-such-bucket/a?[b]"):
        assert storage.glob(pattern) == []
    storage.delete(f"{BUCKET}/nothing")
    with pytest.raises(FileNotFoundError):
        storage.read(f"{BUCKET}/nothing")
    with pytest.raises(StorageAccessError, match="the bucket or folder does not exist"):
        storage.write("no-such-bucket/file", b"")


def test_a_bucket_that_cannot_be_is_no_outage(s3: FaultyS3) -> None:
    with pytest.raises(StorageAccessError, match=r"Invalid bucket name .* Correct the address"):
        Storage("s3://no*/x").is_file("no*/x")


KEYS = ["a b", "a+b%20=&?", "x#y", "[1]", "quote'\"", "a//b", "a/b", "\u00fc/e\u0301", "year=2024/p", "100%", "*"]


def test_keys_of_all_kinds_are_read_and_named_as_they_are(s3: FaultyS3, storage: Storage) -> None:
    for key in KEYS:
        storage.write(f"{BUCKET}/odd/{key}.jsonl", json.dumps({"text": key}).encode())
    for address in (f"s3://{BUCKET}/odd", f"s3://{BUCKET}/odd/**/*.jsonl"):
        plan, rows = read(config(address))
        assert sorted(row["text"] for row in rows) == sorted(KEYS)
        assert all(row["id"] == f"{row['text']}.jsonl:0" for row in rows)
        assert len({file.file.name for file in plan.files}) == len(KEYS)
    storage.delete_folder(f"{BUCKET}/odd")


def test_without_credentials(s3: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(StorageAccessError, match=r"no credentials were found\. Set AWS_ACCESS_KEY_ID"):
            Storage(f"s3://{BUCKET}/run").files(f"{BUCKET}/run")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_an_unknown_protocol() -> None:
    with pytest.raises(StorageAccessError, match="cannot be opened"):
        Storage("s4://bucket/x")


def test_a_failed_multipart_upload_is_aborted(s3: FaultyS3, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    part = 5 * 1024 * 1024
    monkeypatch.setattr(storage_module, "_PART_BYTES", part)
    storage = Storage(f"s3://{BUCKET}/run")
    data = bytes(2 * part + 1)
    storage.delete(KEY)
    client = boto3.client("s3")
    s3.faults = [Fault("internal", 1000, "PUT", "partNumber=2")]
    with pytest.raises(StorageError):
        storage.write(KEY, data)
    s3.faults.clear()
    assert "Uploads" not in client.list_multipart_uploads(Bucket=BUCKET), "aborted"
    assert storage.files(storage.root) == [], "no part of the object is visible"
    s3.faults = [Fault("internal", 2, "PUT", "partNumber=2")]
    storage.write(KEY, data)
    assert storage.info(KEY).bytes == len(data)


def test_retries_are_set_unless_the_environment_does(s3: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "retries" not in Storage(f"s3://{BUCKET}/x").fs.config_kwargs
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    monkeypatch.delenv("AWS_RETRY_MODE")
    assert Storage(f"s3://{BUCKET}/x").fs.config_kwargs["retries"] == {"mode": "standard", "max_attempts": 8}


def test_errors_of_storage_keep_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    from cmasd.io.faults import told

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with pytest.raises(CmasdError) as caught, told("s3://b/k", "read"):
        raise OSError(f"signature made with {SECRET} does not match")
    assert "made with *** does not match" in str(caught.value)
