"""What each route takes and gives, for the OpenAPI document and docs/api.md. Knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import BaseModel

from engine.server.app.control_routes import AbortBody
from engine.server.messages.bodies import COUNT_RULES, CountBody, MessagesBody
from engine.server.messages.bodies import RULES as MESSAGES_RULES
from engine.server.openai.responses.bodies import RULES as RESPONSES_RULES
from engine.server.openai.responses.bodies import InputTokensBody, ResponsesBody
from engine.server.pooling.bodies import (
    COHERE_RULES,
    RULES,
    CohereEmbedBody,
    ConversationInputBody,
    InputBody,
    PoolingBody,
    PoolingConversationBody,
    RerankBody,
    ScoreBody,
)
from engine.server.protocol.batch_body import BatchChatBody
from engine.server.protocol.chat_body import ChatBody
from engine.server.protocol.completion_body import CompletionBody
from engine.server.protocol.field_rules import CHAT, CHAT_BATCH, COMPLETION, NO_RULES, TOKENIZE, FieldRules
from engine.server.protocol.tokenize_bodies import DetokenizeBody, TokenizeChatBody, TokenizePromptBody

# Fields that are taken and change nothing, because what they ask for is the case anyway or is not ours to do.
NO_OP_FIELDS = frozenset(
    {
        "cache_control",
        "keep_alive",
        "prompt_cache_key",
        "safety_identifier",
        "spaces_between_special_tokens",
        "user",
    }
)


class Answer(StrEnum):
    JSON = "application/json"
    TEXT = "text/plain"
    HTML = "text/html"
    EMPTY = ""


@dataclass(frozen=True, slots=True)
class Operation:
    summary: str
    bodies: tuple[type[BaseModel], ...] = ()  # one of these
    answer: Answer = Answer.JSON
    rules: FieldRules = NO_RULES
    streams: bool = False  # may answer with server-sent events instead
    query: Mapping[str, Any] = field(default_factory=dict)  # name → JSON schema
    sleep_mode: bool = False  # only with --enable-sleep-mode


_LEVEL = {"type": "integer", "enum": [1, 2], "default": 1}
_MODE = {"enum": ["abort", "wait"], "default": "abort"}
_TAGS = {"type": "array", "items": {"enum": ["weights", "kv_cache"]}}

_COMMON: dict[tuple[str, str], Operation] = {
    ("GET", "/v1/models"): Operation("The model, under each of its names."),
    ("GET", "/v1/models/{name}"): Operation("One of them."),
    ("POST", "/tokenize"): Operation(
        "The tokens of a text or of a conversation.",
        (TokenizePromptBody, TokenizeChatBody),
        rules=TOKENIZE,
    ),
    ("POST", "/detokenize"): Operation("The text of tokens.", (DetokenizeBody,)),
    ("GET", "/health"): Operation("200 while requests are taken, else 503.", answer=Answer.EMPTY),
    ("GET", "/ping"): Operation("As /health.", answer=Answer.EMPTY),
    ("POST", "/ping"): Operation("As /health.", answer=Answer.EMPTY),
    ("GET", "/version"): Operation("The engine's version."),
    ("GET", "/load"): Operation("How many sequences are running or waiting."),
    ("GET", "/metrics"): Operation("Prometheus metrics under vLLM's names.", answer=Answer.TEXT),
    ("POST", "/inference/v1/abort_requests"): Operation("End requests by their ids.", (AbortBody,)),
    ("POST", "/abort_requests"): Operation("The same.", (AbortBody,)),
    ("POST", "/sleep"): Operation(
        "Give back the KV cache's memory, at level 2 the weights' too.",
        query={"level": _LEVEL, "mode": _MODE},
        sleep_mode=True,
    ),
    ("POST", "/wake_up"): Operation(
        "Take it again, or one part of it.", query={"tags": _TAGS}, sleep_mode=True
    ),
    ("GET", "/is_sleeping"): Operation("Whether a part still sleeps.", sleep_mode=True),
    ("GET", "/memory"): Operation(
        "Bytes that the weights and the KV cache hold, and on which device.", sleep_mode=True
    ),
    ("GET", "/openapi.json"): Operation("This document."),
    ("GET", "/docs"): Operation("It as a page.", answer=Answer.HTML),
}

_VECTORS = (InputBody, ConversationInputBody)

# Of a server that generates.
GENERATING: dict[tuple[str, str], Operation] = {
    ("POST", "/v1/completions"): Operation(
        "Continue a prompt.", (CompletionBody,), rules=COMPLETION, streams=True
    ),
    ("POST", "/v1/chat/completions"): Operation(
        "Answer a conversation.", (ChatBody,), rules=CHAT, streams=True
    ),
    ("POST", "/v1/chat/completions/batch"): Operation(
        "Answer several conversations, with a choice for each.", (BatchChatBody,), rules=CHAT_BATCH
    ),
    ("POST", "/v1/responses"): Operation(
        "Answer in the form of OpenAI's Responses.", (ResponsesBody,), rules=RESPONSES_RULES, streams=True
    ),
    ("POST", "/v1/responses/input_tokens"): Operation(
        "How many tokens that would read.", (InputTokensBody,), rules=RESPONSES_RULES
    ),
    ("GET", "/v1/responses/{name}"): Operation("A stored response."),
    ("GET", "/v1/responses/{name}/input_items"): Operation(
        "What it was made from, earlier turns included.",
        query={
            "after": {"type": "string"},
            "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
            "order": {"enum": ["asc", "desc"], "default": "desc"},
        },
    ),
    ("DELETE", "/v1/responses/{name}"): Operation("Forget a stored response."),
    ("POST", "/v1/responses/{name}/cancel"): Operation("End a response made in the background."),
    ("POST", "/v1/messages"): Operation(
        "Answer a conversation, as Anthropic has it.", (MessagesBody,), rules=MESSAGES_RULES, streams=True
    ),
    ("POST", "/v1/messages/count_tokens"): Operation(
        "How many tokens that would read.", (CountBody,), rules=COUNT_RULES
    ),
    **_COMMON,
    ("POST", "/reset_prefix_cache"): Operation("Forget the prefix cache.", sleep_mode=True),
}

# Of one that runs with --runner pooling.
POOLING: dict[tuple[str, str], Operation] = {
    ("POST", "/v1/embeddings"): Operation("Vectors of texts.", _VECTORS, rules=RULES),
    ("POST", "/v2/embed"): Operation("The same as Cohere has it.", (CohereEmbedBody,), rules=COHERE_RULES),
    ("POST", "/pooling"): Operation(
        "What the model's pooler gives, whatever it is for.",
        (PoolingBody, PoolingConversationBody),
        rules=RULES,
    ),
    **{
        ("POST", path): Operation("How well texts go together.", (ScoreBody,), rules=RULES)
        for path in ("/v1/score", "/score")
    },
    **{
        ("POST", path): Operation("Documents by how well they answer a query.", (RerankBody,), rules=RULES)
        for path in ("/v1/rerank", "/v2/rerank", "/rerank")
    },
    **_COMMON,
}

OPERATIONS = {**GENERATING, **POOLING}
