"""The body of a batch of chats: a chat body with a list of conversations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, model_validator

from engine.errors import InvalidRequest
from engine.server.protocol import body_limits
from engine.server.protocol.chat_body import ChatBody
from engine.server.protocol.conversation_body import ChatMessage

Conversation = Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]


class BatchChatBody(ChatBody):
    """vLLM's `BatchChatCompletionRequest`: no streaming, no tools, and one choice per conversation."""

    size_limits = body_limits.CHAT_BATCH

    messages: Annotated[  # type: ignore[assignment]  # the only field that differs from a chat's
        list[Conversation], Field(min_length=1, fail_fast=True)
    ]

    @model_validator(mode="after")
    def _check_batch(self) -> BatchChatBody:
        requested: dict[str, Any] = {
            "stream": self.stream,
            "tools": self.tools,
            "n": self.n > 1,
            "use_beam_search": self.use_beam_search,
            "prompt_logprobs": self.prompt_logprobs is not None,
            "return_prompt_text": self.return_prompt_text,
        }
        for name, is_requested in requested.items():
            if is_requested:
                raise InvalidRequest(
                    f"{name} is not supported in a batch of chats: send each conversation to "
                    "/v1/chat/completions.",
                    param=name,
                )
        return self

    def conversations(self) -> Iterator[ChatBody]:
        """One chat body per conversation; all fields are already validated."""
        shared = {name: getattr(self, name) for name in ChatBody.model_fields if name != "messages"}
        for messages in self.messages:
            yield ChatBody.model_construct(self.model_fields_set, **shared, messages=messages)
