"""Request bodies and media types of each route, for the OpenAPI document and docs/api.md.

Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import BaseModel

from engine.server.app.adapter_routes import LoadAdapterBody, UnloadAdapterBody
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

# Fields that are accepted without effect: what they ask for is the case anyway, or is not the engine's task.
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


class MediaType(StrEnum):
    JSON = "application/json"
    TEXT = "text/plain"
    HTML = "text/html"
    EMPTY = ""


@dataclass(frozen=True, slots=True)
class Operation:
    summary: str
    bodies: tuple[type[BaseModel], ...] = ()  # the request has one of these
    media_type: MediaType = MediaType.JSON
    rules: FieldRules = NO_RULES
    streams: bool = False  # can respond with server-sent events instead
    query: Mapping[str, Any] = field(default_factory=dict)  # name → JSON schema
    sleep_mode: bool = False  # only with --enable-sleep-mode


_LEVEL = {"type": "integer", "enum": [1, 2], "default": 1}
_MODE = {"enum": ["abort", "wait"], "default": "abort"}
_TAGS = {"type": "array", "items": {"enum": ["weights", "kv_cache"]}}

_COMMON: dict[tuple[str, str], Operation] = {
    ("GET", "/v1/models"): Operation("The served model, once per name."),
    ("GET", "/v1/models/{name}"): Operation("One of these models."),
    ("POST", "/tokenize"): Operation(
        "Tokenize a text or a conversation.",
        (TokenizePromptBody, TokenizeChatBody),
        rules=TOKENIZE,
    ),
    ("POST", "/detokenize"): Operation("Decode tokens to text.", (DetokenizeBody,)),
    ("GET", "/health"): Operation(
        "200 while the server accepts requests, otherwise 503.", media_type=MediaType.EMPTY
    ),
    ("GET", "/ping"): Operation("Same as /health.", media_type=MediaType.EMPTY),
    ("POST", "/ping"): Operation("Same as /health.", media_type=MediaType.EMPTY),
    ("GET", "/version"): Operation("The engine's version."),
    ("GET", "/load"): Operation("Number of running and waiting sequences."),
    ("GET", "/metrics"): Operation("Prometheus metrics under vLLM's names.", media_type=MediaType.TEXT),
    ("POST", "/inference/v1/abort_requests"): Operation("Abort requests by id.", (AbortBody,)),
    ("POST", "/abort_requests"): Operation("Same as /inference/v1/abort_requests.", (AbortBody,)),
    ("POST", "/sleep"): Operation(
        "Free the KV cache's memory, at level 2 the weights' as well.",
        query={"level": _LEVEL, "mode": _MODE},
        sleep_mode=True,
    ),
    ("POST", "/wake_up"): Operation(
        "Reallocate the memory, or only the parts in `tags`.", query={"tags": _TAGS}, sleep_mode=True
    ),
    ("GET", "/is_sleeping"): Operation("Whether any part is asleep.", sleep_mode=True),
    ("GET", "/memory"): Operation(
        "Bytes held by the weights and the KV cache, and their device.", sleep_mode=True
    ),
    ("GET", "/openapi.json"): Operation("This document."),
    ("GET", "/docs"): Operation("This document as a page.", media_type=MediaType.HTML),
}

_VECTORS = (InputBody, ConversationInputBody)

# Routes of a server that generates.
GENERATING: dict[tuple[str, str], Operation] = {
    ("POST", "/v1/completions"): Operation(
        "Continue a prompt.", (CompletionBody,), rules=COMPLETION, streams=True
    ),
    ("POST", "/v1/chat/completions"): Operation(
        "Answer a conversation.", (ChatBody,), rules=CHAT, streams=True
    ),
    ("POST", "/v1/chat/completions/batch"): Operation(
        "Answer several conversations, one choice each.", (BatchChatBody,), rules=CHAT_BATCH
    ),
    ("POST", "/v1/responses"): Operation(
        "Answer with OpenAI's Responses API.", (ResponsesBody,), rules=RESPONSES_RULES, streams=True
    ),
    ("POST", "/v1/responses/input_tokens"): Operation(
        "Count the input tokens of such a request.", (InputTokensBody,), rules=RESPONSES_RULES
    ),
    ("GET", "/v1/responses/{name}"): Operation("A stored response."),
    ("GET", "/v1/responses/{name}/input_items"): Operation(
        "Its input items, including earlier turns.",
        query={
            "after": {"type": "string"},
            "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
            "order": {"enum": ["asc", "desc"], "default": "desc"},
        },
    ),
    ("DELETE", "/v1/responses/{name}"): Operation("Delete a stored response."),
    ("POST", "/v1/responses/{name}/cancel"): Operation("Cancel a background response."),
    ("POST", "/v1/messages"): Operation(
        "Answer with Anthropic's Messages API.", (MessagesBody,), rules=MESSAGES_RULES, streams=True
    ),
    ("POST", "/v1/messages/count_tokens"): Operation(
        "Count the input tokens of such a request.", (CountBody,), rules=COUNT_RULES
    ),
    **_COMMON,
    ("POST", "/reset_prefix_cache"): Operation("Clear the prefix cache.", sleep_mode=True),
    ("POST", "/v1/load_lora_adapter"): Operation(
        "Load a LoRA adapter, which is then a model of its own. Only with `--enable-lora`.",
        (LoadAdapterBody,),
        MediaType.TEXT,
    ),
    ("POST", "/v1/unload_lora_adapter"): Operation(
        "Unload a LoRA adapter; requests that run finish with it. Only with `--enable-lora`.",
        (UnloadAdapterBody,),
        MediaType.TEXT,
    ),
}

# Routes of a server with --runner pooling.
POOLING: dict[tuple[str, str], Operation] = {
    ("POST", "/v1/embeddings"): Operation("Embed texts.", _VECTORS, rules=RULES),
    ("POST", "/v2/embed"): Operation(
        "Embed texts, in Cohere's format.", (CohereEmbedBody,), rules=COHERE_RULES
    ),
    ("POST", "/pooling"): Operation(
        "The output of the model's pooler, for any task.",
        (PoolingBody, PoolingConversationBody),
        rules=RULES,
    ),
    **{
        ("POST", path): Operation("Score pairs of texts.", (ScoreBody,), rules=RULES)
        for path in ("/v1/score", "/score")
    },
    **{
        ("POST", path): Operation("Rank documents by relevance to a query.", (RerankBody,), rules=RULES)
        for path in ("/v1/rerank", "/v2/rerank", "/rerank")
    },
    **_COMMON,
}

OPERATIONS = {**GENERATING, **POOLING}
