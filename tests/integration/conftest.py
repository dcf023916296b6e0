"""A tiny random pair on disk, with a real tokenizer: what a run needs and nothing more."""

from pathlib import Path

import pytest

SENTENCES = [
    "The train leaves at seven.",
    "Where did you put the keys?",
    "Click Save to keep your changes.",
    "My sister lives by the sea.",
    "The file could not be opened.",
    "We had soup and bread for lunch.",
]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `verifier` and `drafter`."""
    from cmasd.training.tokenizer import train_tokenizer
    from tests.unit.runner.tiny import tiny_model

    folder = tmp_path_factory.mktemp("pair")
    tokenizer = train_tokenizer(SENTENCES, vocabulary_size=300)
    for seed, name in enumerate(("verifier", "drafter")):
        model = tiny_model("marian", seed=seed, vocabulary=len(tokenizer), layers=1)
        model.config.eos_token_id = tokenizer.eos_token_id
        model.config.pad_token_id = tokenizer.pad_token_id
        model.config.decoder_start_token_id = tokenizer.pad_token_id
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.decoder_start_token_id = tokenizer.pad_token_id
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder
