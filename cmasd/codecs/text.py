"""Text to token ids and back, for whatever a tokenizer needs around a row's text, or around its messages (`chat.py`).

Templates, chat templates and language codes end here, so the engine sees ids only. A row that cannot be encoded
(null, not a string, broken unicode, too long) becomes a RowError value in its place: a job never stops for one row.
Rows are checked and tokenized all at once; only when that fails are they tried one by one to find the culprit.
Does not pad, and does not cut outputs.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, Literal, cast

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cmasd.codecs.chat import Chat
from cmasd.core import Result, RowError
from cmasd.errors import ConfigError, ModelError
from cmasd.messages import Message, MessagesError, conversation, without_thinking

Ids = list[int]

_PLACE = "{text}"


class TextCodec:
    """One tokenizer with one way of wrapping texts."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: str | None,
        chat: bool,
        source_language: str | None,
        target_language: str | None,
        on_too_long: Literal["error", "truncate"],
        max_source_tokens: int,
        is_encoder_decoder: bool,
        known_ids: int,
        messages: bool = False,
        system: str | None = None,
        drops_thinking: bool = False,
    ) -> None:
        """Raise ConfigError for a template without `{text}`, ModelError for what the tokenizer lacks.

        `known_ids`: the model has an embedding for the ids below this; tokenizers may have gained others. `messages`:
        texts are conversations as JSON, as lists of messages are in any case.
        """
        if template is not None and _PLACE not in template:
            raise ConfigError(
                f"input.template: has no {_PLACE}, got {template!r}; expected {_PLACE} where the row goes."
            )
        key = "input.messages_column" if messages else "input.chat" if chat else None
        self._talk = Chat(tokenizer, key, system, drops_thinking)
        self._drops_thinking = drops_thinking
        self._messages = messages
        self._tokenizer = cast(Any, tokenizer)
        self._template = template or _PLACE
        self._chat = chat or messages
        self._truncates = on_too_long == "truncate"
        self._limit = max_source_tokens
        self._known_ids = known_ids
        self._is_encoder_decoder = is_encoder_decoder
        self._is_bare = self._template == _PLACE and not self._chat
        self.forced_bos_token_id: int | None = None
        """The target language's token, which must be generated first; None where there is none."""
        if source_language is not None:
            token = _language_token_id(self._tokenizer, "source", source_language)
            if token >= known_ids:
                raise ModelError(
                    f"models.source_language: {source_language} is no token of the model, got id {token}; expected an "
                    f"id below {known_ids}, the size of its embeddings. Use the tokenizer that belongs to the model."
                )
            self._tokenizer.src_lang = source_language
        if target_language is not None:
            self.forced_bos_token_id = _language_token_id(self._tokenizer, "target", target_language)
        self._backend = _backend(self._tokenizer)

    @property
    def tokens(self) -> dict[str, int]:
        """All that there are as they are spelt, special ones left out, with their ids."""
        special = set(self._tokenizer.all_special_ids)
        return {token: one for token, one in self._tokenizer.get_vocab().items() if one not in special}

    @cached_property
    def vocabulary(self) -> str:
        """A digest of all tokens and their ids: where it is the same, ids mean the same."""
        tokens = json.dumps(sorted(self._tokenizer.get_vocab().items()))
        return hashlib.blake2b(tokens.encode(), digest_size=16).hexdigest()

    def encode(self, texts: Sequence[object]) -> list[Ids | RowError]:
        """Token ids of every text, or list of messages, in order, or why a row has none."""
        prompts = list(texts) if self._is_bare and _all_text(texts) else [self._prompt(text) for text in texts]
        encoded: dict[bool, Iterator[Ids | RowError]] = {}
        for chat in (False, True):  # a chat template writes the special tokens itself
            rows = zip(texts, prompts, strict=True)
            good = [prompt for text, prompt in rows if isinstance(prompt, str) and self._is_chat(text) is chat]
            encoded[chat] = iter(self._tokenize(good, chat))
        return [
            prompt if isinstance(prompt, RowError) else self._known(self._fit(text, next(encoded[self._is_chat(text)])))
            for text, prompt in zip(texts, prompts, strict=True)
        ]

    def parts(self, texts: Sequence[object]) -> Iterator[list[Ids | RowError]]:
        """The same in parts of what may well be in memory at once."""
        yield self.encode(texts)

    def _is_chat(self, text: object) -> bool:
        return self._chat or isinstance(text, list)

    def decode(self, rows: list[Ids]) -> list[str | RowError]:
        """The text of every row of generated ids, special tokens and the forced language token left out."""
        if not rows:
            return []
        if self.forced_bos_token_id is not None:
            rows = [row[1:] if row[:1] == [self.forced_bos_token_id] else row for row in rows]
        try:
            return self._detokenize(rows)
        except Exception:  # noqa: BLE001  (whatever one row's ids provoke, the other rows have their text)
            return [self._decode_one(row) for row in rows]

    def say(self, results: list[Result]) -> list[str | RowError]:
        """What comes out for every result."""
        return self.decode([result.token_ids.tolist() for result in results])

    def _detokenize(self, rows: list[Ids]) -> list[str | RowError]:
        if self._backend is not None:
            texts = self._backend.decode_batch(rows, skip_special_tokens=True)
        else:
            texts = self._tokenizer.decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [without_thinking(text) for text in texts] if self._drops_thinking else list(texts)

    def _decode_one(self, row: Ids) -> str | RowError:
        try:
            return self._detokenize([row])[0]
        except Exception as error:  # noqa: BLE001
            return RowError("detokenise", f"the tokenizer failed on this row's ids ({_reason(error)})")

    def encode_outputs(self, texts: list[str]) -> list[Ids]:
        """Ids that decode to these texts, without an end of sequence; the model may have said them by others."""
        start = [] if self.forced_bos_token_id is None else [self.forced_bos_token_id]
        return [[*start, *ids] for ids in self._output_ids(texts)]

    def _output_ids(self, texts: list[str]) -> list[Ids]:
        if not texts:
            return []
        try:
            encoding = self._tokenizer(text_target=texts, add_special_tokens=False, verbose=False)
            return cast(list[Ids], encoding["input_ids"])
        except Exception:  # noqa: BLE001  (a text that no tokenizer takes has no ids, the others do)
            return [[]] if len(texts) == 1 else [self._output_ids([text])[0] for text in texts]

    def _prompt(self, text: object) -> str | RowError:
        """What the model reads for a text, or for messages, as a string."""
        if self._messages or isinstance(text, list):
            return self._prompt_of_messages(text)
        if text is None:
            return RowError("encode", "the text is null")
        if not isinstance(text, str):
            return RowError("encode", f"the text is not a string, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return RowError("encode", f"the text is not valid unicode (lone surrogate at character {error.start})")
        try:
            prompt = self._wrap(text)
        except Exception as error:  # noqa: BLE001  (chat templates are programs and raise what they like)
            return RowError("encode", f"the chat template failed on this row ({_reason(error)})")
        return self._not_empty(prompt)

    def _prompt_of_messages(self, given: object) -> str | RowError:
        try:
            return self._not_empty(self._talk.prompt(conversation(given)))
        except MessagesError as error:
            return RowError("encode", str(error))
        except Exception as error:  # noqa: BLE001  (as above)
            return RowError("encode", f"the chat template failed on this row ({_reason(error)})")

    def _not_empty(self, prompt: str) -> str | RowError:
        if not prompt and not self._is_encoder_decoder:
            return RowError("encode", "the prompt is empty; a decoder-only model needs at least one token")
        return prompt

    def _wrap(self, text: str) -> str:
        text = self._template.replace(_PLACE, text)
        return self._talk.prompt([{"role": "user", "content": text}]) if self._chat else text

    def _tokenize(self, prompts: list[str], chat: bool) -> list[Ids | RowError]:
        if not prompts:
            return []
        try:
            ids = self._ids if self._backend is None else self._backend_ids
            return list(ids(prompts, chat))
        except Exception as error:  # noqa: BLE001  (find the row that the tokenizer cannot take)
            if len(prompts) == 1:
                return [RowError("encode", f"the tokenizer failed on this row ({_reason(error)})")]
            return [self._tokenize([prompt], chat)[0] for prompt in prompts]

    def _backend_ids(self, prompts: list[str], chat: bool) -> list[Ids]:
        """What `_ids` gives, without the offsets, masks and dictionaries that nobody here reads."""
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        return [row.ids for row in self._backend.encode_batch_fast(prompts, add_special_tokens=not chat)]

    def _ids(self, prompts: list[str], chat: bool, **options: object) -> list[Ids]:
        encoding = self._tokenizer(prompts, add_special_tokens=not chat, verbose=False, **options)
        return cast(list[Ids], encoding["input_ids"])

    def _known(self, ids: Ids | RowError) -> Ids | RowError:
        """A row that holds an id without an embedding would be read as other words, or end the run."""
        if isinstance(ids, RowError) or max(ids) < self._known_ids:
            return ids
        stranger = next(one for one in ids if one >= self._known_ids)
        piece = self._tokenizer.convert_ids_to_tokens(stranger)
        table = f"expected ids below {self._known_ids}, the size of its table"
        return RowError("encode", f"the model has no embedding for token {stranger} ({piece!r}); {table}")

    def _fit(self, text: object, ids: Ids | RowError) -> Ids | RowError:
        if isinstance(ids, RowError) or 0 < len(ids) <= self._limit:
            return ids
        if not ids:
            return RowError("encode", "the text has no tokens")
        try:
            cut = self._truncate(text) if self._truncates else None
        except Exception as error:  # noqa: BLE001  (a chat template may refuse the shorter text)
            return RowError("encode", f"the chat template failed on this row, cut ({_reason(error)})")
        if cut is not None:
            return cut
        way_out = "even without its text" if self._truncates else "shorten it, or set input.on_too_long to truncate"
        return RowError("encode", f"the source has {len(ids)} tokens; expected at most {self._limit} ({way_out})")

    def _truncate(self, text: object) -> Ids | None:
        """Cut tokens, as transformers does, where the text ends the prompt; else cut the text and keep what follows.

        Of messages, the last one is cut.
        """
        if self._messages or isinstance(text, list):
            *before, last = conversation(text)
            return self._longest_prefix(last["content"], True, partial(self._ending, before, last))
        text = cast(str, text)
        if self._template.endswith(_PLACE) and not self._chat:
            [ids] = self._ids([self._wrap(text)], chat=False, truncation=True, max_length=self._limit)
            return ids if 0 < len(ids) <= self._limit else None
        return self._longest_prefix(text, self._chat, self._wrap)

    def _ending(self, before: list[Message], last: Message, content: str) -> str:
        return self._talk.prompt([*before, {**last, "content": content}])

    def _longest_prefix(self, text: str, chat: bool, wrap: Callable[[str], str]) -> Ids | None:
        """Binary search for the most characters of `text` whose whole prompt fits; None when not even none do."""
        best, low, high = None, 0, len(text) - 1
        while low <= high:
            middle = (low + high) // 2
            [ids] = self._ids([wrap(text[:middle])], chat)
            if len(ids) <= self._limit:
                best, low = ids, middle + 1
            else:
                high = middle - 1
        return best


def inside_words(codec: TextCodec | None) -> frozenset[int]:
    """Ids of tokens that go on with a word, by the mark that words begin with, or that they go on with.

    None where the tokenizer marks neither, or there is none.
    """
    vocabulary: dict[str, int] = {} if codec is None else codec.tokens
    for mark in ("\u2581", "\u0120"):
        if any(token.startswith(mark) for token in vocabulary):
            return frozenset(
                one
                for token, one in vocabulary.items()
                if not token.startswith(mark) and any(letter.isalnum() for letter in token)
            )
    return frozenset(one for token, one in vocabulary.items() if token.startswith("##"))


def _all_text(texts: Sequence[object]) -> bool:
    """Whether all are strings, none empty, of whole characters: then no row needs a look of its own."""
    try:
        return all(texts) and bool("\n".join(cast(list[str], texts)).encode())
    except (TypeError, ValueError):  # something else than a string, a lone surrogate, an array
        return False


_STOCK_METHODS = ("__call__", "_encode_plus", "decode", "_decode", "batch_decode")


def _backend(tokenizer: Any) -> Any:
    """The `tokenizers.Tokenizer` inside, where transformers would do nothing but call it; else None."""
    kind = type(tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    if any(getattr(kind, name) is not getattr(PreTrainedTokenizerFast, name) for name in _STOCK_METHODS):
        return None
    tokenizer([""], verbose=False)  # leaves its settings in the backend: language, special tokens, no padding
    return tokenizer.backend_tokenizer


def _language_token_id(tokenizer: Any, side: str, language: str) -> int:
    """Id of a language's token in M2M100, NLLB, mBART and kin."""
    key = f"models.{side}_language"
    known = _languages(tokenizer)
    if not known:
        raise ModelError(
            f"{key}: the tokenizer has no language codes, got {language!r}; expected null for this model. "
            "Where the language is a prefix of the text, write it in input.template."
        )
    if language not in known:
        some = ", ".join(sorted(known)[:: max(1, len(known) // 8)][:8])
        raise ModelError(f"{key}: unknown language, got {language!r}; expected a code of this model, such as {some}.")
    return known[language]


def _languages(tokenizer: Any) -> dict[str, int]:
    """Code -> token id. NLLB alone has no table: its codes are the special tokens that look like `eng_Latn`."""
    if not hasattr(tokenizer, "set_src_lang_special_tokens"):
        return {}
    if hasattr(tokenizer, "lang_code_to_token"):
        return {code: tokenizer.get_lang_id(code) for code in tokenizer.lang_code_to_token}
    codes = getattr(tokenizer, "lang_code_to_id", None) or (
        token for token in tokenizer.all_special_tokens if token[:1].islower() and "_" in token
    )
    ids = {code: tokenizer.convert_tokens_to_ids(code) for code in codes}
    return {code: index for code, index in ids.items() if index not in (None, tokenizer.unk_token_id)}


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
