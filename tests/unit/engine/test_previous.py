"""An earlier run's outputs as tokens: its own where they fit, else its text tokenised anew."""

from functools import cache

from cmasd.config import from_dict
from cmasd.engine import Pair, load_pair
from cmasd.engine.previous import said_before
from cmasd.io.earlier import Said

TEXTS = ["Der Zug fährt um sieben.", "Wo hast du die Schlüssel hingelegt?", "Ärger & Ödnis: 3,5 % – „ja“"]
EOS = 99999


@cache
def bundled() -> Pair:
    return load_pair(
        from_dict({"input": {"path": "i"}, "output": {"path": "o"}, "policy": {"kind": "plain"}, "models": {}})
    )


def test_a_text_is_tokenised_as_outputs_are() -> None:
    codec = bundled().codec
    ids = codec.encode_outputs(TEXTS)
    assert codec.decode(ids) == TEXTS
    end = bundled().constraints.eos_token_ids[0]
    assert all(end not in row for row in ids), "a row that was cut has no end"
    assert codec.encode_outputs([]) == []


def test_kept_ids_are_taken_where_they_make_the_same_text() -> None:
    codec = bundled().codec
    ids = codec.encode_outputs(TEXTS)
    odd = [*codec.encode_outputs(["Der Zug fährt"])[0], *codec.encode_outputs(["um sieben."])[0], EOS]
    said = [
        Said(codec.decode([odd[:-1]])[0], odd[:-1], True),  # type: ignore[arg-type]
        Said(TEXTS[1], ids[0], True),
        Said(TEXTS[2], None, False),
        None,
        Said("", None, True),
        Said(TEXTS[0], [10**9], True),
    ]
    assert said_before(codec, said, [EOS, 5]) == [
        odd[:-1],
        [*ids[1], EOS],
        ids[2],
        None,
        [EOS],
        [*ids[0], EOS],
    ]


def test_nothing_was_said() -> None:
    assert said_before(bundled().codec, [None, None], [EOS]) == [None, None]
    assert said_before(bundled().codec, [], [EOS]) == []
