"""Messages become the chat template's prompt, turn by turn; what cannot be one is an error of its row."""

import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from cmasd.codecs.text import TextCodec
from cmasd.core import RowError
from cmasd.errors import ModelError
from tests.unit.codecs.test_text import CHAT, bytes_tokenizer, codec, message, text_of

TURNS = [
    {"role": "user", "content": "2+2"},
    {"role": "assistant", "content": "<think>hm</think>4"},
    {"role": "user", "content": "+1"},
]
WITHOUT_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT
DEAF = CHAT.replace("messages %}", "messages if m.role != 'system' %}")


def tokenizer(template: str | None = CHAT) -> PreTrainedTokenizerFast:
    made = bytes_tokenizer("<s> $A")
    made.chat_template = template
    return made


def chatty(made_by: str | None = CHAT, **options: Any) -> TextCodec:
    return codec(tokenizer(made_by), is_encoder_decoder=False, max_source_tokens=200, **options)


def test_conversations_equal_the_tokenizers_own() -> None:
    expected: Any = tokenizer().apply_chat_template(TURNS, add_generation_prompt=True, return_dict=False)
    assert chatty(messages=True).encode([json.dumps(TURNS)]) == [expected]
    assert chatty().encode([TURNS]) == [expected], "lists are conversations without any key"
    assert text_of(tokenizer(), expected) == "<s>user:2+2<s>assistant:<think>hm</think>4<s>user:+1#bot:"


def test_texts_and_conversations_come_back_in_order() -> None:
    rows = chatty().encode(["ab", TURNS[:1], None, "c", [{"role": "robot"}], TURNS[2:]])
    said = [str(row) if isinstance(row, RowError) else text_of(tokenizer(), row) for row in rows]
    assert said == [
        "<s>ab",
        "<s>user:2+2#bot:",
        "encode: the text is null",
        "<s>c",
        "encode: message 1 has the role 'robot', expected one of system, developer, user, assistant, tool",
        "<s>user:+1#bot:",
    ]


def test_one_system_message_for_all_who_have_none() -> None:
    own = [{"role": "system", "content": "No."}, TURNS[0]]
    rows = chatty(messages=True, system="Be kind.").encode([json.dumps(TURNS[:1]), json.dumps(own)])
    said = [text_of(tokenizer(), row) for row in rows]
    assert said == ["<s>system:Be kind.<s>user:2+2#bot:", "<s>system:No.<s>user:2+2#bot:"]
    [row] = chatty(chat=True, system="Be kind.", template="say {text}").encode(["hi"])
    assert text_of(tokenizer(), row) == "<s>system:Be kind.<s>user:say hi#bot:"


@pytest.mark.parametrize(
    ("template", "why"),
    [(WITHOUT_SYSTEM, r"refuses it \(no system\), got 'Be kind\.'"), (DEAF, "leaves it out, got 'Be kind")],
)
def test_a_template_without_system_messages_is_told_at_the_start(template: str, why: str) -> None:
    with pytest.raises(ModelError, match=f"input.system: the model's chat template {why}"):
        chatty(template, chat=True, system="Be kind.")


def test_a_tokenizer_without_a_template() -> None:
    with pytest.raises(ModelError, match=r"input\.messages_column: the tokenizer has no chat template"):
        chatty(None, messages=True)
    bad, good = chatty(None).encode([TURNS, "a"])
    assert "chat template failed on this row (Cannot use chat template functions" in message(bad)
    assert text_of(tokenizer(), good) == "<s>a"


def test_thinking_is_dropped_from_outputs_and_from_earlier_turns() -> None:
    dropping = chatty(drops_thinking=True)
    [row] = dropping.encode([TURNS])
    assert text_of(tokenizer(), row) == "<s>user:2+2<s>assistant:4<s>user:+1#bot:"
    ids = [tokenizer()(said, add_special_tokens=False)["input_ids"] for said in ("<think>a</think>\nb", "c")]
    assert dropping.decode(ids) == ["b", "c"]
    assert chatty().decode(ids) == ["<think>a</think>\nb", "c"]


def test_of_a_conversation_that_is_too_long_the_last_message_is_cut() -> None:
    cutting = chatty(on_too_long="truncate")
    turns = [*TURNS[:2], {"role": "user", "content": "x" * 300}]
    [row] = cutting.encode([turns])
    assert isinstance(row, list)
    assert len(row) == 200
    assert text_of(tokenizer(), row).startswith("<s>user:2+2<s>assistant:<think>hm</think>4<s>user:xxx")
    assert text_of(tokenizer(), row).endswith("xxx#bot:")
    [row] = cutting.encode([[{"role": "user", "content": "x" * 300}, *TURNS[1:]]])
    assert "(even without its text)" in message(row)


def test_a_template_that_refuses_the_cut_text_spares_the_others() -> None:
    picky = CHAT + "{% if messages[0].content | length < 250 %}{{ raise_exception('short') }}{% endif %}"
    rows = chatty(picky, on_too_long="truncate").encode([[{"role": "user", "content": "x" * 300}], "a"])
    assert message(rows[0]) == "encode: the chat template failed on this row, cut (short)"
    assert text_of(tokenizer(), rows[1]) == "<s>a"
