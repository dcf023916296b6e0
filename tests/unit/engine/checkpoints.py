"""Tiny checkpoints in folders, as a user would have them: a model, a tokenizer of words and a generation config.

Word `wN` is token N; the first ids are special tokens, and their texts in a row are read as them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerFast

from cmasd.config import Config, from_dict
from cmasd.core import Request, RowError
from cmasd.engine import Pair, load_pair
from tests.unit.engine.pairs import decode_plain
from tests.unit.runner.tiny import ENCODER_DECODER, tiny_model

VOCABULARY = 64
SPECIAL = ("<s0>", "<s1>", "<s2>", "<s3>")


def words(*ids: int) -> str:
    """The text of these tokens."""
    return " ".join(SPECIAL[i] if i < len(SPECIAL) else f"w{i}" for i in ids)


def word_tokenizer(size: int, end: int | None, has_eos: bool) -> PreTrainedTokenizerFast:
    """`end` is appended to every row; `has_eos`: whether the tokenizer knows it as its end of sequence."""
    pieces = {words(i): i for i in range(size)}
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token=words(3)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if end is not None:
        single = f"$A {words(end)}"
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[(words(end), end)])
    known: dict[str, Any] = {"eos_token": words(end if end is not None else 2)} if has_eos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=words(3), additional_special_tokens=list(SPECIAL), **known
    )


def save_checkpoint(
    folder: Path,
    family: str,
    generation: dict[str, Any],
    *,
    model_config: dict[str, Any] | None = None,
    tokens: int = VOCABULARY,
    has_eos: bool = True,
    seed: int = 0,
) -> Path:
    """`tokens`: ids that the tokenizer knows; `generation` is the whole of generation_config.json."""
    model: Any = tiny_model(family, seed=seed, layers=1)
    end = model.config.eos_token_id if family in ENCODER_DECODER else None
    model.save_pretrained(folder)
    word_tokenizer(tokens, end, has_eos).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **(model_config or {})}))
    return folder


def pair_config(folder: Path, **sections: dict[str, Any]) -> Config:
    """Plain decoding in float64."""
    own: dict[str, Any] = {"models": {"verifier": str(folder), "dtype": "float64"}, "policy": {"kind": "plain"}}
    return from_dict({name: {**own.get(name, {}), **sections.get(name, {})} for name in {*own, *sections}})


def outputs(pair: Pair, texts: Sequence[str | list[int]]) -> list[list[int] | RowError]:
    """Ids that the engine makes of each text, or of its ids; or why it has none."""
    sources = [pair.codec.encode([one])[0] if isinstance(one, str) else one for one in texts]
    requests = [Request(i, one, pair.max_new_tokens) for i, one in enumerate(sources) if not isinstance(one, RowError)]
    results = decode_plain(pair, requests)
    return [
        source if isinstance(source, RowError) else results[i].token_ids.tolist() for i, source in enumerate(sources)
    ]


def generated(folder: Path, texts: Sequence[str | list[int]], **settings: Any) -> list[list[int]]:
    """What transformers makes of each text, or of its ids, alone, by the checkpoint's settings; greedily."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    factory: Any = AutoModelForSeq2SeqLM
    if not json.loads((folder / "config.json").read_text()).get("is_encoder_decoder"):
        factory = AutoModelForCausalLM
    model: Any = factory.from_pretrained(folder, dtype=torch.float64).eval()
    rows = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"] if isinstance(text, str) else text])
        given = {"do_sample": False, "num_beams": 1, **settings}
        output = model.generate(ids, attention_mask=torch.ones_like(ids), **given)[0].tolist()
        rows.append(output[1 if model.config.is_encoder_decoder else ids.shape[1] :])
    return rows


def loaded(folder: Path, **sections: dict[str, Any]) -> Pair:
    """As a run loads it."""
    return load_pair(pair_config(folder, **sections))
