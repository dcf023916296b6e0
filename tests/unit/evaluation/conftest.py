"""What tests of measurements have in common."""

from collections.abc import Iterator

import pytest

from cmasd.evaluation.speed import timing as speed


@pytest.fixture(scope="package", autouse=True)
def _few_rows() -> Iterator[None]:
    """Chunks of eight rows: nobody looks at how fast made-up models are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "LEAST_ROWS", 8)
        yield
