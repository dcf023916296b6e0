"""Tokenizers of a pair: every text comes back, ids are the expected ones, plain transformers loads them."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from cmasd.errors import ConfigError
from cmasd.training.tokenizer import EOS, PAD, SMALLEST, UNK, read_tokenizer, train_tokenizer
from tests.unit.training.small import VOCABULARY, sentences, small_tokenizer


@given(st.text())
@settings(max_examples=200)
@example("")
@example(" leading and trailing ")
@example("  two\tspaces\n\n")
@example("don 't , you 're .")
@example("Grüße aus 東京 \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \x00\x07\x7f")
@example("Cafe\u0301 \u212b")
@example("<pad> </s> <unk></s>")
def test_any_text_comes_back(text: str) -> None:
    tokenizer = small_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == unicodedata.normalize("NFC", text)
    assert [i for i in ids if i in tokenizer.all_special_ids] == [tokenizer.eos_token_id]
    assert ids[-1] == tokenizer.eos_token_id


def test_ids_of_special_tokens_and_size() -> None:
    tokenizer = small_tokenizer()
    assert tokenizer.convert_tokens_to_ids([PAD, EOS, UNK]) == [0, 1, 2]
    assert len(tokenizer) == VOCABULARY == len(tokenizer.get_vocab())


def test_frequent_words_become_pieces() -> None:
    assert len(small_tokenizer()("gee")["input_ids"]) < len(small_tokenizer()("qxz")["input_ids"]) == 5


def test_training_is_repeatable() -> None:
    twice = [train_tokenizer(sentences(50), 270).get_vocab() for _ in range(2)]
    assert twice[0] == twice[1]


@pytest.mark.parametrize("size", [SMALLEST - 1, 100_000])
def test_a_size_that_the_texts_cannot_give_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=rf"tokenizer\.vocabulary_size: .* got {size}; expected .* from {SMALLEST}"):
        train_tokenizer(sentences(5), size)


def test_plain_transformers_loads_it(tmp_path: Path) -> None:
    small_tokenizer().save_pretrained(tmp_path)
    texts = [" Grüße </s>", "bee cee", "\U0001f600"]
    expected = small_tokenizer()(texts)["input_ids"]
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), read_tokenizer(tmp_path)):
        assert loaded(texts)["input_ids"] == expected
        assert [loaded.decode(ids, skip_special_tokens=True) for ids in expected] == texts
        assert (loaded.pad_token_id, loaded.eos_token_id, loaded.unk_token_id) == (0, 1, 2)
