"""What an earlier run said, as tokens of today's pair: drafts for the same rows.

The ids that it kept are taken where today's tokenizer makes the same text of them; else its text is tokenised anew.
"""

from collections.abc import Sequence

from cmasd.codecs.text import TextCodec
from cmasd.config.tree import Config
from cmasd.core import RowError
from cmasd.engine.pair import Pair
from cmasd.io.earlier import Id, Said, earlier_run


def said_before(codec: TextCodec, said: Sequence[Said | None], eos_ids: Sequence[int]) -> list[list[int] | None]:
    """Token ids of each row, the end of sequence included; None where nothing was said."""
    kept = {i: one for i, one in enumerate(said) if one is not None and one.token_ids}
    texts: list[str | RowError] = codec.decode([one.token_ids or [] for one in kept.values()])
    tokens: dict[int, list[int]] = {
        i: one.token_ids or [] for (i, one), text in zip(kept.items(), texts, strict=True) if text == one.output
    }
    others = {i: one for i, one in enumerate(said) if one is not None and i not in tokens}
    for (i, one), ids in zip(
        others.items(), codec.encode_outputs([one.output for one in others.values()]), strict=True
    ):
        tokens[i] = [*ids, *eos_ids[:1]] if one.has_ended else ids
    return [tokens.get(i) for i in range(len(said))]


def previous_outputs(config: Config, pair: Pair, ids: Sequence[Id]) -> list[list[int] | None] | None:
    """Of rows of no known place; None where no earlier run is asked for."""
    earlier = earlier_run(config)
    if earlier is None:
        return None
    return said_before(pair.codec, earlier.of(ids, near=(0, 0)), pair.constraints.eos_token_ids)
