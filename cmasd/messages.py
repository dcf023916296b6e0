"""Conversations: lists of messages with a role and a content, as OpenAI's interface and its batch files have them.

What is not one raises `MessagesError`, which says what is wrong with which message; what is kept of a message is what
chat templates read. Between reading and encoding a conversation is JSON text, so that a row of it travels as any other.
"""

import json
import re
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
NO_QUESTION = ("system", "developer", "assistant")
"""Roles of a last message that leaves nothing to answer."""
ALSO_KEPT = ("name", "tool_calls", "tool_call_id", "reasoning_content")
_THINKING = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_SHOWN = 60

Message = dict[str, Any]


class MessagesError(ValueError):
    """What is wrong, without saying where."""


def conversation(value: object) -> list[Message]:
    """From a list of messages, or its JSON text; raises `MessagesError`."""
    if value is None:
        raise MessagesError("messages are null")
    if isinstance(value, bytes | str):
        value = _parsed(value)
    if not isinstance(value, list):
        raise MessagesError(f"messages are {type(value).__name__}, expected a list: {_shown(value)}")
    if not value:
        raise MessagesError("messages are an empty list; expected at least one")
    messages = [_message(number, one) for number, one in enumerate(value, 1)]
    if messages[-1]["role"] in NO_QUESTION:
        raise MessagesError(f"message {len(value)} is the last and of role {messages[-1]['role']}; expected a question")
    return messages


def as_text(messages: list[Message]) -> str:
    """JSON, from which `conversation` makes the same again."""
    try:
        return json.dumps(messages, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise MessagesError(f"messages hold what JSON cannot: {' '.join(str(error).split())}") from None


def without_thinking(text: str) -> str:
    """Without what stands between `<think>` and `</think>`; prompts may end in the first, outputs before the second."""
    rest = _THINKING.sub("", text).rpartition("</think>")[2]
    return rest if len(rest) == len(text) else rest.lstrip()


def _parsed(text: bytes | str) -> object:
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise MessagesError(f"messages are not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise MessagesError(f"messages are text but not JSON ({error.msg} at character {error.pos})") from None
    except (ValueError, RecursionError) as error:
        raise MessagesError(f"messages are text but not JSON ({error})") from None


def _message(number: int, one: object) -> Message:
    if not isinstance(one, dict):
        raise MessagesError(f"message {number} is {type(one).__name__}, expected an object: {_shown(one)}")
    role, content = one.get("role"), one.get("content")
    role = role.decode("utf-8", "replace") if isinstance(role, bytes) else role
    if role not in ROLES:
        raise MessagesError(f"message {number} has the role {_shown(role)}, expected one of {', '.join(ROLES)}")
    kept = {name: one[name] for name in ALSO_KEPT if one.get(name) is not None}
    if content is None and "tool_calls" not in kept:
        raise MessagesError(f"message {number} of role {role} has no content")
    role = "system" if role == "developer" else role
    return {"role": role, "content": "" if content is None else _content(number, content), **kept}


def _content(number: int, content: object) -> str:
    """Text, or a list of parts that are text."""
    if isinstance(content, list):
        return "\n".join(_part(number, part) for part in content)
    if isinstance(content, bytes):
        return _content(number, _decoded(number, content))
    if not isinstance(content, str):
        kind = type(content).__name__
        raise MessagesError(f"the content of message {number} is {kind}, expected text: {_shown(content)}")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        where = f"character {error.start}"
        raise MessagesError(f"the content of message {number} is not valid Unicode ({where})") from None
    return content


def _decoded(number: int, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise MessagesError(f"the content of message {number} is not UTF-8 (byte {error.start})") from None


def _part(number: int, part: object) -> str:
    if isinstance(part, str):
        return _content(number, part)
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if not isinstance(part, dict) or not isinstance(part.get("text"), str | bytes):
        raise MessagesError(f"message {number} has a part of type {_shown(kind)}, expected text alone")
    return _content(number, part["text"])


def _shown(value: object) -> str:
    """Printable ASCII, on one line."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
