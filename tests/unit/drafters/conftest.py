"""Known texts are looked up in C, and where there is no compiler in Python: what is asked of one is asked of both."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", params=["in C", "in Python"])
def looked_up(request: pytest.FixtureRequest) -> Iterator[None]:
    """For modules that use it."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "in Python":
            patch.setattr("cmasd.drafters.free.lookups_library", lambda: None)
        yield
