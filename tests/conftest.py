"""Settings that every test shares: one thread, no network, no surprises from the caller's environment.

The environment is set before anything imports torch, transformers or ray, and child processes inherit it.
"""

import atexit
import logging
import os
import shutil
import sys
import tempfile

import pytest
from hypothesis import settings

CACHE_FOLDER = tempfile.mkdtemp(prefix="cmasd-tests-")
"""Tables of step costs made here are those of tiny models on a busy machine: not for the user's own cache."""
atexit.register(shutil.rmtree, CACHE_FOLDER, ignore_errors=True)

ENVIRONMENT = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "XDG_CACHE_HOME": CACHE_FOLDER,
}
os.environ.update(ENVIRONMENT)
os.environ.pop("RAY_ADDRESS", None)

settings.register_profile("cmasd", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("cmasd")


@pytest.fixture(autouse=True)
def log_lines_stay_with_their_test() -> None:
    """Code under test may configure the library's logger for its process, and libraries switch other loggers off."""
    logger = logging.getLogger("cmasd")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)
    for name, other in logging.root.manager.loggerDict.items():
        if name.split(".")[0] == "cmasd" and isinstance(other, logging.Logger):
            other.disabled = False


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Tiny models lose more to thread hand-over than they gain; code under test may have set another number.

    Torch is not imported for the sake of a test that does without it: OMP_NUM_THREADS covers its start.
    """
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
