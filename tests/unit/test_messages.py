"""What is a conversation, what is not and why, and what of it is kept."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmasd.messages import Message, MessagesError, as_text, conversation, without_thinking

USER = {"role": "user", "content": "Why?"}


def test_several_turns_are_kept_with_what_templates_read() -> None:
    calls = [{"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]
    given = [
        {"role": "developer", "content": "Be brief.", "weight": 1},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "name": None},
        {"role": "assistant", "content": None, "tool_calls": calls, "refusal": None},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
    ]
    kept: list[Message] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
    ]
    assert conversation(given) == conversation(json.dumps(given)) == conversation(as_text(kept)) == kept


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "messages are null"),
        ([], "messages are an empty list; expected at least one"),
        (7, "messages are int, expected a list: 7"),
        ("[", "messages are text but not JSON (Expecting value at character 1)"),
        ("[" * 100_000, "messages are text but not JSON (maximum recursion depth exceeded"),
        (b"\xff", "messages are not UTF-8 (byte 0)"),
        ('{"role": "user"}', "messages are dict, expected a list: {'role': 'user'}"),
        ([USER, "Why?"], "message 2 is str, expected an object: 'Why?'"),
        ([{"content": "Why?"}], "message 1 has the role None, expected one of system, developer, user, assistant, "),
        ([{**USER, "role": ["user"]}], "message 1 has the role ['user'], expected one of "),
        ([USER, {"role": "user"}], "message 2 of role user has no content"),
        ([{**USER, "content": 3}], "the content of message 1 is int, expected text: 3"),
        ([{**USER, "content": b"\xff"}], "the content of message 1 is not UTF-8 (byte 0)"),
        ([{**USER, "content": "a\ud800"}], "the content of message 1 is not valid Unicode (character 1)"),
        ([{**USER, "content": [{"type": "image_url", "image_url": {}}]}],
         "message 1 has a part of type 'image_url', expected text alone"),
        ([{**USER, "content": [{"type": "text", "text": None}]}], "message 1 has a part of type 'text', expected "),
        ([{**USER, "content": [3]}], "message 1 has a part of type 'int', expected text alone"),
        ([USER, {"role": "assistant", "content": "So."}],
         "message 2 is the last and of role assistant; expected a question"),
        ([{"role": "system", "content": "x"}], "message 1 is the last and of role system; expected a question"),
    ],
)  # fmt: skip
def test_what_is_none_says_why(given: Any, message: str) -> None:
    with pytest.raises(MessagesError) as raised:
        conversation(given)
    assert str(raised.value).startswith(message)


def test_what_json_cannot_hold_is_told() -> None:
    with pytest.raises(MessagesError, match="messages hold what JSON cannot: Object of type bytes is not JSON"):
        as_text(conversation([{**USER, "tool_calls": [b"a"]}]))


VALUES = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=4), st.binary(max_size=3), st.sampled_from(["user", "tool"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "type", "text", "tool_calls"]), inner, max_size=3),
    ),
    max_leaves=12,
)


@given(VALUES)
def test_any_value_is_a_conversation_or_an_error_in_one_line(value: Any) -> None:
    try:
        text = as_text(conversation(value))
    except MessagesError as error:
        said = str(error)
        assert said.isprintable()
        return
    assert as_text(conversation(text)) == text


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("<think>\nhm\n</think>\n\nFour.", "Four."),
        ("hm\n</think>\n\nFour.", "Four."),
        ("<think>never done", ""),
        ("Four, <think>or</think>and five.", "Four, and five."),
        ("  Four.", "  Four."),
        ("<think></think><think>a</think> b", "b"),
    ],
)
def test_thinking_is_left_out(said: str, left: str) -> None:
    assert without_thinking(said) == left
