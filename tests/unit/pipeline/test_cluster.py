"""What a run is told of the machine that it did not use."""

import pytest

from cmasd.config.running import ActorsConfig
from cmasd.pipeline.cluster import Resources


@pytest.mark.parametrize(
    ("actors", "gpus_each", "shards", "expected"),
    [
        (ActorsConfig(), 0.0, 9, ["actors.max: 1, with CPUs for 4 actors; actors.max=4 uses more."]),
        (ActorsConfig(), 1.0, 3, ["actors.max: 1, with GPUs for 4 actors; actors.max=3 uses more."]),
        (ActorsConfig(), 0.0, 1, []),
        (ActorsConfig(max=4), 0.0, 9, []),
        (ActorsConfig(count=1), 0.0, 9, []),
    ],
)
def test_idle_processors_are_named_unless_their_number_was_asked_for(
    actors: ActorsConfig, gpus_each: float, shards: int, expected: list[str]
) -> None:
    has = Resources(1, actors.count or actors.max, 1.0, gpus_each, is_local=True, room=4)
    assert has.notices(actors, shards) == expected
