"""What a verifier read and said in a run, for a drafter that reads its states: prompts as the run made them.

Its states behind a bare text are others than behind a text in a template, or in the markup of a chat.
"""

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cmasd.codecs.text import Ids, TextCodec
from cmasd.config import Config
from cmasd.core import RowError
from cmasd.engine.pair import text_codec
from cmasd.generation.constraints import as_ids
from cmasd.generation.settings import limits
from cmasd.training.recipe import DataRecipe


@dataclass(frozen=True)
class Prompts:
    """Token ids of both sides of a row."""

    codec: TextCodec
    ends: tuple[int, ...]
    """The tokens of which each ends an output."""

    @classmethod
    def of(cls, recipe: DataRecipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "Prompts | None":
        """By the run's configuration, where the recipe names one; raises `ConfigError` for what is wrong with it."""
        if recipe.config is None:
            return None
        config = run_of(recipe)
        longest = limits(config.engine, model.generation_config, model.config).max_source_tokens
        return cls(text_codec(config, model, tokenizer, longest), as_ids(model.generation_config.eos_token_id))

    def sources(self, texts: list[str]) -> list[Ids]:
        """None of a row that the run could not encode either."""
        return [[] if isinstance(ids, RowError) else ids for ids in self.codec.encode(texts)]

    def targets(self, texts: list[str]) -> list[Ids]:
        """With an end of sequence, where the model has one."""
        return [[*ids, *self.ends[:1]] for ids in self.codec.encode_outputs(texts)]


def run_of(recipe: DataRecipe) -> Config:
    """The configuration of the run that wrote the data; the default where none is named."""
    from cmasd.config import load

    return Config() if recipe.config is None else load([recipe.config])
