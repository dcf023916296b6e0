"""Rows that can be encoded equal the tokenizer's own ids; rows that cannot become values, and harm no other row."""

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    M2M100Tokenizer,
    MBart50Tokenizer,
    MBartTokenizer,
    NllbTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from cmasd.codecs.text import TextCodec, inside_words
from cmasd.core import RowError
from cmasd.errors import ConfigError, ModelError

EOS, BOS = 1, 2
CHAT = (
    "{% for m in messages %}<s>{{ m.role }}:{{ m.content }}{% endfor %}{% if add_generation_prompt %}#bot:{% endif %}"
)
REFUSING_CHAT = "{{ raise_exception('rude row') if 'rude' in messages[0].content else messages[0].content }}"


def bytes_tokenizer(special: str) -> PreTrainedTokenizerFast:
    """One piece per byte. `special` shows where the row goes: `$A </s>`, `<s> $A`, or `$A`."""
    pieces = ["<pad>", "</s>", "<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=special, special_tokens=[("</s>", EOS), ("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>")


def codec(tokenizer: PreTrainedTokenizerBase | None = None, **options: Any) -> TextCodec:
    settings: dict[str, Any] = {
        "template": None,
        "chat": False,
        "source_language": None,
        "target_language": None,
        "on_too_long": "error",
        "max_source_tokens": 60,
        "is_encoder_decoder": True,
        "known_ids": 1_000_000,
    }
    return TextCodec(tokenizer or bytes_tokenizer("$A </s>"), **{**settings, **options})


def message(row: list[int] | str | RowError) -> str:
    assert isinstance(row, RowError)
    return str(row)


def test_ids_that_the_model_lacks_are_told_with_their_text() -> None:
    tokenizer = bytes_tokenizer("$A </s>")
    tokenizer.add_tokens(["<mask>"])
    mask = len(tokenizer) - 1
    plain, masked, doubly, whole = codec(tokenizer, known_ids=mask).encode(["ab", "a<mask>b", "<mask><mask>", "~"])
    assert plain == tokenizer("ab")["input_ids"]
    assert isinstance(whole, list)
    told = f"encode: the model has no embedding for token {mask} ('<mask>'); expected ids below {mask}, the size of "
    assert message(masked) == message(doubly) == f"{told}its table"
    [known] = codec(tokenizer, known_ids=mask + 1).encode(["a<mask>b"])
    assert known == tokenizer("a<mask>b")["input_ids"]


def text_of(tokenizer: PreTrainedTokenizerBase, row: list[int] | RowError) -> str:
    assert isinstance(row, list), row
    return str(tokenizer.decode(row, skip_special_tokens=False))


def test_bad_rows_become_values_between_good_ones() -> None:
    rows = codec().encode(["a", None, 3, b"b", "x\ud800y", "", "c" * 60, "d" * 59])
    tokenizer = bytes_tokenizer("$A </s>")
    assert rows[0] == tokenizer("a")["input_ids"]
    assert message(rows[1]) == "encode: the text is null"
    assert message(rows[2]) == "encode: the text is not a string, got int"
    assert message(rows[3]) == "encode: the text is not a string, got bytes"
    assert "surrogate at character 1" in message(rows[4])
    assert rows[5] == [EOS]
    assert "61 tokens; expected at most 60" in message(rows[6])
    assert len(rows[7]) == 60 if isinstance(rows[7], list) else False


def test_no_rows() -> None:
    assert codec().encode([]) == []
    assert codec().encode([None]) == [RowError("encode", "the text is null")]
    assert codec().decode([]) == []


@given(st.lists(st.one_of(st.text(max_size=20), st.none(), st.integers()), max_size=6))
def test_good_rows_come_back_as_they_were(texts: list[object]) -> None:
    converter = codec(max_source_tokens=200)
    rows = converter.encode(texts)
    kept = [row for row in rows if isinstance(row, list)]
    assert converter.decode(kept) == [text for text in texts if isinstance(text, str)]
    assert len(rows) == len(texts)


def test_a_template_takes_texts_with_braces_and_with_its_own_place() -> None:
    tokenizer = bytes_tokenizer("$A </s>")
    rows = codec(tokenizer, template="sum {x}: {text}").encode(["{a} {0} {", "{text}"])
    assert [text_of(tokenizer, row) for row in rows] == ["sum {x}: {a} {0} {</s>", "sum {x}: {text}</s>"]


def test_a_template_without_a_place_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"input\.template: has no \{text\}, got 'summarize:'"):
        codec(template="summarize:")


def test_an_empty_prompt_is_an_error_for_a_decoder_only_model_alone() -> None:
    for special in ("$A", "<s> $A"):
        assert "prompt is empty" in message(codec(bytes_tokenizer(special), is_encoder_decoder=False).encode([""])[0])
    [row] = codec(bytes_tokenizer("$A"), is_encoder_decoder=False, template="Q: {text}").encode([""])
    assert isinstance(row, list)
    assert "no tokens" in message(codec(bytes_tokenizer("$A")).encode([""])[0])


def test_truncation_keeps_the_end_token() -> None:
    tokenizer = bytes_tokenizer("$A </s>")
    rows = codec(tokenizer, on_too_long="truncate", max_source_tokens=5).encode(["abcdefgh", "abcd", "abcde"])
    assert [text_of(tokenizer, row) for row in rows] == ["abcd</s>"] * 3
    assert codec(tokenizer).encode(["x" * 20]) == [tokenizer("x" * 20)["input_ids"]], "truncation left a trace"


def test_truncation_keeps_what_follows_the_text() -> None:
    tokenizer = bytes_tokenizer("<s> $A")
    options: dict[str, Any] = {"template": "T: {text} =>", "on_too_long": "truncate", "is_encoder_decoder": False}
    rows = codec(tokenizer, max_source_tokens=10, **options).encode(["abcdefgh", "äöü", "ab"])
    assert [text_of(tokenizer, row) for row in rows] == ["<s>T: abc =>", "<s>T: ä =>", "<s>T: ab =>"]
    assert "even without its text" in message(codec(tokenizer, max_source_tokens=3, **options).encode(["abcdefgh"])[0])


def test_chat_wraps_the_templated_text_and_adds_no_second_start_token() -> None:
    tokenizer = bytes_tokenizer("<s> $A")
    tokenizer.chat_template = CHAT
    options: dict[str, Any] = {"chat": True, "template": "say {text}", "is_encoder_decoder": False}
    [row] = codec(tokenizer, **options).encode(["hi"])
    assert text_of(tokenizer, row) == "<s>user:say hi#bot:"
    conversation = [{"role": "user", "content": "say hi"}]
    expected = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    assert row == expected
    [cut] = codec(tokenizer, **options, on_too_long="truncate", max_source_tokens=16).encode(["abcdefgh"])
    assert text_of(tokenizer, cut) == "<s>user:say a#bot:"


def test_chat_needs_a_chat_template() -> None:
    with pytest.raises(ModelError, match=r"input\.chat: the tokenizer has no chat template"):
        codec(chat=True)


def test_a_chat_template_that_refuses_one_row_spares_the_others() -> None:
    tokenizer = bytes_tokenizer("$A")
    tokenizer.chat_template = REFUSING_CHAT
    rows = codec(tokenizer, chat=True, is_encoder_decoder=False).encode(["kind", "rude"])
    assert text_of(tokenizer, rows[0]) == "kind"
    assert "chat template failed on this row (rude row)" in message(rows[1])


class _Fragile(PreTrainedTokenizerFast):
    """Fails as python tokenizers do on some inputs: for the whole batch, in both directions."""

    def __call__(self, texts: Any, **options: Any) -> Any:
        if any("!" in text for text in texts):
            raise ValueError("cannot encode !\nsecond line")
        return super().__call__(texts, **options)

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **options: Any) -> Any:
        if any(9 in row for row in token_ids):
            raise IndexError("piece id is out of range.")
        return super().decode(token_ids, skip_special_tokens, **options)


def test_a_row_that_breaks_the_tokenizer_spares_the_others() -> None:
    inner = bytes_tokenizer("$A </s>")
    make: Any = _Fragile
    fragile: PreTrainedTokenizerFast = make(
        tokenizer_object=inner.backend_tokenizer, eos_token="</s>", pad_token="<pad>"
    )
    rows = codec(fragile).encode(["a", "!", "b"])
    assert [rows[0], rows[2]] == [inner("a")["input_ids"], inner("b")["input_ids"]]
    assert message(rows[1]) == "encode: the tokenizer failed on this row (cannot encode !)"
    texts = codec(fragile).decode([[50, EOS], [9], [51, EOS]])
    assert [texts[0], texts[2]] == [inner.decode([50]), inner.decode([51])]
    assert message(texts[1]) == "detokenise: the tokenizer failed on this row's ids (piece id is out of range.)"


PIECES = st.lists(st.sampled_from(["a", "b ", "é", "\n", "</s>", "<s>"]), max_size=9).map("".join)
"""Texts with the names of special tokens in them."""


class _Careful(PreTrainedTokenizerFast):
    """A tokenizer with a method of its own, hence never called past transformers."""

    def __call__(self, texts: Any, **options: Any) -> Any:
        return super().__call__(texts, **options)


@pytest.mark.parametrize("on_too_long", ["error", "truncate"])
@pytest.mark.parametrize("splits", [False, True])
@given(st.lists(st.lists(PIECES, max_size=4), max_size=3))
def test_the_short_way_gives_what_transformers_gives(
    splits: bool, on_too_long: str, batches: list[list[object]]
) -> None:
    stock = bytes_tokenizer("$A </s>")
    make: Any = _Careful
    careful = make(tokenizer_object=bytes_tokenizer("$A </s>").backend_tokenizer, eos_token="</s>", pad_token="<pad>")
    stock.split_special_tokens = careful.split_special_tokens = splits
    short, long = (codec(t, on_too_long=on_too_long, max_source_tokens=8) for t in (stock, careful))
    for texts in batches:
        rows = short.encode(texts)
        assert rows == long.encode(texts)
        ids = [row for row in rows if isinstance(row, list)]
        assert short.decode(ids) == long.decode(ids)


def test_decoding_leaves_spaces_before_punctuation_alone() -> None:
    tokenizer = bytes_tokenizer("$A </s>")
    tokenizer.clean_up_tokenization_spaces = True
    assert codec(tokenizer).decode(tokenizer(["is n't it ?"])["input_ids"]) == ["is n't it ?"]


@pytest.fixture(scope="module")
def m2m100(tmp_path_factory: pytest.TempPathFactory) -> M2M100Tokenizer:
    """The class that M2M100 checkpoints use, on a sentencepiece model of 30 pieces."""
    folder: Path = tmp_path_factory.mktemp("m2m100")
    texts = ["the cat sat on the mat", "der hund lief im park"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "spm"),
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *(model.id_to_piece(i) for i in range(3, model.get_piece_size()))]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    return M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "spm.model"))


def _check_languages(tokenizer: Any, source: str, target: str, target_id: int, source_id: int) -> None:
    converter = codec(tokenizer, source_language=source, target_language=target)
    assert converter.forced_bos_token_id == target_id
    [row] = converter.encode(["the cat"])
    assert isinstance(row, list)
    assert source_id in row
    assert tokenizer.eos_token_id in row
    [cut] = codec(tokenizer, source_language=source, on_too_long="truncate", max_source_tokens=3).encode(
        ["the cat sat"]
    )
    assert isinstance(cut, list)
    assert len(cut) == 3
    assert {source_id, tokenizer.eos_token_id} <= set(cut)
    with pytest.raises(ModelError, match=rf"models\.source_language: {source} is no token of the model, got id "):
        codec(tokenizer, source_language=source, known_ids=source_id)
    plain = tokenizer("the cat", add_special_tokens=False)["input_ids"]
    assert converter.decode([[target_id, *plain]]) == [tokenizer.decode(plain, skip_special_tokens=True)]
    with pytest.raises(ModelError, match=r"models\.target_language: unknown language, got 'xx_Nope'.* such as \w+"):
        codec(tokenizer, target_language="xx_Nope")
    with pytest.raises(ModelError, match=r"models\.source_language: unknown language, got 'the'"):
        codec(tokenizer, source_language="the")


def test_m2m100_languages(m2m100: M2M100Tokenizer) -> None:
    _check_languages(m2m100, "en", "de", m2m100.get_lang_id("de"), m2m100.get_lang_id("en"))


@pytest.mark.parametrize(
    ("kind", "source", "target"),
    [
        (NllbTokenizer, "fra_Latn", "deu_Latn"),
        (MBartTokenizer, "fr_XX", "de_DE"),
        (MBart50Tokenizer, "fr_XX", "de_DE"),
    ],
)
def test_nllb_and_mbart_languages(kind: Any, source: str, target: str) -> None:
    tokenizer = kind()
    ids = tokenizer.convert_tokens_to_ids([target, source])
    assert tokenizer.unk_token_id not in ids
    _check_languages(tokenizer, source, target, *ids)


def test_languages_are_refused_where_the_tokenizer_has_none() -> None:
    with pytest.raises(ModelError, match=r"models\.target_language: the tokenizer has no language codes, got 'de'"):
        codec(target_language="de")
    assert codec().forced_bos_token_id is None


@pytest.mark.parametrize(
    ("pieces", "inside"),
    [
        (["\u2581the", "\u2581Zug", "s", "führer", ",", ".", "\u25817", "8"], {"s", "führer", "8"}),
        (["\u0120the", "\u0120Zug", "s", "\u00c3\u00bc", ",", "\u0120,"], {"s", "\u00c3\u00bc"}),
        (["the", "Zug", "##s", "##,", ","], {"##s", "##,"}),
        (["the", "Zug", "s"], set()),
    ],
)
def test_tokens_inside_words_are_told_by_the_tokenizer_s_mark(pieces: list[str], inside: set[str]) -> None:
    """Of sentencepiece, of bytes, of WordPiece, of none; punctuation is no part of a word, special tokens are none."""
    vocabulary = {piece: number for number, piece in enumerate(["<pad>", "</s>", "<s>", *pieces])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
    )
    assert inside_words(codec(tokenizer)) == {vocabulary[piece] for piece in inside}


def test_without_a_tokenizer_nobody_knows_what_a_word_is() -> None:
    assert inside_words(None) == frozenset()


def test_a_vocabulary_is_told_from_another() -> None:
    def made_of(*pieces: str) -> str:
        vocabulary = {piece: number for number, piece in enumerate(["<pad>", *pieces])}
        model = models.WordLevel(vocabulary, unk_token="<pad>")
        return codec(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), pad_token="<pad>")).vocabulary

    assert made_of("a", "b") == made_of("a", "b")
    assert len({made_of("a", "b"), made_of("b", "a"), made_of("a", "c"), made_of("a")}) == 4
