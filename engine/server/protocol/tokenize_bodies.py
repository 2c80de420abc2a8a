"""Bodies of /tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from engine.server.protocol import body_limits
from engine.server.protocol.conversation_body import ConversationBody
from engine.server.protocol.request_body import RequestBody, null_as
from engine.server.protocol.sampling_fields import TokenId


class TokenizePromptBody(RequestBody):
    size_limits = body_limits.TOKENIZE

    prompt: str
    add_special_tokens: Annotated[bool, null_as(True)] = True
    return_token_strs: Annotated[bool, null_as(False)] = False


class TokenizeChatBody(ConversationBody):
    return_token_strs: Annotated[bool, null_as(False)] = False


class DetokenizeBody(RequestBody):
    size_limits = body_limits.DETOKENIZE

    tokens: Annotated[list[TokenId], Field(fail_fast=True)]
