"""One exception class per failure that a user can see.

Each carries the exit code of the process that ends by it. A message is one line and reads
`<key or file>: <what is wrong>, got <value>; expected <rule>. <what to do>`.
"""


class CmasdError(Exception):
    """Base of every failure that is reported in one line, without a traceback."""

    exit_code = 1


class ConfigError(CmasdError):
    """A configuration key is unknown, of the wrong type, or outside its range."""

    exit_code = 2


class InputError(CmasdError):
    """The input cannot be read as configured: path, format or column."""

    exit_code = 2


class ModelError(CmasdError):
    """A model or tokenizer is missing, unsupported, or does not fit its partner."""

    exit_code = 2


class StorageAccessError(CmasdError):
    """A storage refuses us: no or wrong credentials, no permission, no such bucket, an address it cannot have."""

    exit_code = 2


class StorageError(CmasdError):
    """A storage failed, after retries: an outage, a full disk, expired credentials; rerunning resumes."""

    exit_code = 1


class RunFolderError(CmasdError):
    """The output folder holds another run, or a damaged one."""

    exit_code = 2


class RunInUseError(CmasdError):
    """Another process works on the run folder; the same command succeeds once that has ended."""

    exit_code = 1


class DecodingError(CmasdError):
    """A model failed while decoding; rerunning resumes after the last committed shard."""

    exit_code = 1


class TrainingError(CmasdError):
    """Training did not come to its end; the same command goes on from the last checkpoint."""

    exit_code = 1


class IncompleteRunError(CmasdError):
    """The audit found input rows without a result; rerunning completes them."""

    exit_code = 1


class TooManyFailedRowsError(CmasdError):
    """More rows failed than `limits.max_failed_fraction` allows."""

    exit_code = 3
