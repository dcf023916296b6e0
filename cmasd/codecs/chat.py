"""Conversations to prompts, by the tokenizer's chat template.

Chat templates are programs that come with a model, and raise what they like. A system message that a template refuses,
or leaves out without a word, is told at the start and not in every row. Does not tokenize.
"""

from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from cmasd.errors import ModelError
from cmasd.messages import Message, without_thinking


class Chat:
    """One tokenizer's template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, key: str | None, system: str | None, drops: bool) -> None:
        """`key`: what in the configuration asks for conversations; None: perhaps nobody. `drops`: thinking.

        Raises `ModelError` for a tokenizer without a template, and for a template without system messages.
        """
        if key is not None and not tokenizer.chat_template:
            raise ModelError(
                f"{key}: the tokenizer has no chat template; expected an instruct model. "
                "Use input.text_column with input.chat=false, or write the prompt as input.template."
            )
        self._tokenizer = cast(Any, tokenizer)
        self._system = system
        self._drops = drops
        if system is not None:
            self._check_system(system)

    def _check_system(self, system: str) -> None:
        try:
            prompt, why = self.prompt([{"role": "user", "content": "-"}]), "leaves it out"
        except Exception as error:  # noqa: BLE001  (whatever the template raises)
            prompt, why = "", f"refuses it ({' '.join(str(error).split())[:200]})"
        if system.strip() not in prompt:
            raise ModelError(
                f"input.system: the model's chat template {why}, got {system!r}; expected a template with system "
                "messages. Put it before each text by input.template."
            )

    def prompt(self, messages: list[Message]) -> str:
        """What the model reads before its answer."""
        if self._drops:
            messages = [_without_thinking(message) for message in messages]
        if self._system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self._system}, *messages]
        return cast(str, self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _without_thinking(message: Message) -> Message:
    if message["role"] != "assistant":
        return message
    rest = {name: value for name, value in message.items() if name != "reasoning_content"}
    return {**rest, "content": without_thinking(message["content"])}
