"""What a storage refuses or fails to do, told in one line; no secret of the environment is in it.

Two kinds, by what helps: `StorageAccessError` (exit 2: credentials, permission, address) and `StorageError` (exit 1:
outages that outlasted the retries, a full disk, expired credentials; a rerun resumes). `FileNotFoundError` and
`FileExistsError` pass as they are: callers ask by them. Retries themselves are botocore's and s3fs's.
"""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cmasd.errors import CmasdError, StorageAccessError, StorageError

_SECRETS = re.compile(r"SECRET|TOKEN|PASSWORD|CREDENTIAL", re.IGNORECASE)
_EXPIRED = ("expiredtoken", "requestexpired", "tokenrefreshrequired", "token has expired", "token is expired")
_INVALID = ("ParamValidation", "Parameter validation failed", "InvalidBucketName")
_MISSING = ("NoCredentials", "PartialCredentials", "CredentialRetrieval", "ProfileNotFound")


@contextmanager
def told(address: str, what: str, missing: str | None = None) -> Iterator[None]:
    """`what` completes "cannot be ..."; `missing`: what it means here that something is not found."""
    try:
        yield
    except (CmasdError, FileExistsError):
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        if missing is None and isinstance(error, NotADirectoryError):  # below a file there is nothing
            raise FileNotFoundError(*error.args) from None
        if missing is None:
            raise
        advice = "Create it, or correct the address."
        raise StorageAccessError(f"{address}: cannot be {what}: {missing}. {advice}") from None
    except Exception as error:
        raise _fault(address, what, error) from error


def _fault(address: str, what: str, error: Exception) -> CmasdError:
    names = {type(link).__name__ for link in _links(error)} | {_code(link) for link in _links(error)}
    said = f"{' '.join(sorted(names))} {error}"
    start, reason = (
        f"{address}: cannot be {what}",
        redact(" ".join(str(error).split()) or type(error).__name__)[:200].rstrip("."),
    )
    if any(mark in said.lower() for mark in _EXPIRED):
        return StorageError(f"{start}: the credentials have expired. Renew them and run the same command again.")
    if "400" in names:  # the answer to a HEAD has no text
        return StorageError(
            f"{start}: the request was refused ({reason}), as it is when credentials have expired. Renew them and run "
            "the same command again."
        )
    if any(mark in said for mark in _MISSING):
        return StorageAccessError(
            f"{start}: no credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
            "or run where a role is attached."
        )
    if isinstance(error, PermissionError):
        return StorageAccessError(f"{start}: access is denied ({reason}). Check the credentials and their permissions.")
    if isinstance(error, (ValueError, NotImplementedError, ImportError)) or any(mark in said for mark in _INVALID):
        return StorageAccessError(f"{start}: {reason}. Correct the address.")
    return StorageError(f"{start}: {reason}. Run the same command again when the storage answers.")


def _links(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _code(error: BaseException) -> str:
    """The error code of an S3 answer."""
    response: Any = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def redact(text: str) -> str:
    """Without the values of the environment's secrets: no library should print them, but this is the last door."""
    for name, value in os.environ.items():
        if _SECRETS.search(name) and len(value) >= 8:
            text = text.replace(value, "***")
    return text


class Guarded(io.RawIOBase):
    """A stored file whose failures to be read are told, so that they differ from content that cannot be parsed."""

    def __init__(self, file: Any, address: str) -> None:
        self._file = file
        self._address = address

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """As the file is."""
        return bool(self._file.seekable())

    def readinto(self, buffer: Any) -> int:
        """Up to as many bytes as fit."""
        with told(self._address, "read"):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As the file does."""
        with told(self._address, "read"):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """As the file does."""
        return int(self._file.tell())

    def close(self) -> None:
        """The file too."""
        if not self.closed:
            self._file.close()
        super().close()
