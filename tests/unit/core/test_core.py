"""The shared vocabulary: plain values that travel between processes without torch."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from cmasd import errors
from cmasd.core import Request, Result, RowError
from cmasd.signals import IterationTrace, TokenTrace


def a_result() -> Result:
    half = np.full(3, 0.5, dtype=np.float32)
    one = np.ones(1, dtype=np.int32)
    return Result(
        key=4,
        token_ids=np.array([7, 8, 2], dtype=np.int32),
        finish_reason="stop",
        num_input_tokens=5,
        num_iterations=1,
        num_drafted_tokens=2,
        num_accepted_tokens=2,
        mean_confidence=0.5,
        mean_gap_nats=0.0,
        iterations=IterationTrace(one, one, *(half[:1] for _ in range(5))),
        tokens=TokenTrace(np.zeros(3, dtype=np.int8), *(half for _ in range(TokenTrace.width() - 1))),
    )


def test_results_travel_between_processes() -> None:
    copy = pickle.loads(pickle.dumps(a_result()))
    assert copy.token_ids.tolist() == [7, 8, 2]
    assert copy.num_output_tokens == 3
    assert copy.tokens.confidence.tolist() == [0.5] * 3


def test_values_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Request(0, [1], 2).key = 1  # type: ignore[misc]
    with pytest.raises(AttributeError):
        a_result().key = 1  # type: ignore[misc]


def test_a_row_error_reads_as_one_line() -> None:
    assert str(RowError("encode", "the text has no tokens")) == "encode: the text has no tokens"


def test_torch_is_not_loaded() -> None:
    code = "import sys, cmasd.core; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_exit_codes() -> None:
    """What a script that runs the job can rely on."""
    kinds = {
        name: kind.exit_code
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.CmasdError)
    }
    assert kinds == {
        "CmasdError": 1,
        "ConfigError": 2,
        "InputError": 2,
        "ModelError": 2,
        "RunFolderError": 2,
        "RunInUseError": 1,
        "StorageError": 1,
        "StorageAccessError": 2,
        "DecodingError": 1,
        "TrainingError": 1,
        "IncompleteRunError": 1,
        "TooManyFailedRowsError": 3,
    }
