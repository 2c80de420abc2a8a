"""The clients of the matrix, and what each is seen to do. `make docs` writes docs/clients.md from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Environment = Literal["development", "python", "frameworks", "old", "node"]
Does = Literal["answer", "stream", "tools", "object", "embeddings", "list"]
DOES: tuple[Does, ...] = ("answer", "stream", "tools", "object", "embeddings", "list")
TALKS: tuple[Does, ...] = ("answer", "stream", "tools")
NO_TOOLS: tuple[Does, ...] = ("answer", "stream", "object", "embeddings")
ACTS: tuple[Does, ...] = ("stream", "tools")
MAKES: tuple[Does, ...] = (*TALKS, "object")

CHAT, RESPONSES, MESSAGES, OLLAMA = "chat completions", "Responses", "Messages", "Ollama's"


@dataclass(frozen=True, slots=True)
class Client:
    """A script of `scripts/`, which prints what the client got."""

    package: str  # as its environment's list of requirements names it
    api: str
    environment: Environment
    script: str
    does: tuple[Does, ...]
    provider: str = ""  # which of several ways the script goes
    prints: Mapping[str, Any] = field(default_factory=dict)  # what else it must print

    @property
    def name(self) -> str:
        parts = (self.script.replace(".", "-"), self.provider, self.environment)
        return "-".join(part for part in parts if part)


CLIENTS = (
    # Python
    Client("openai", CHAT, "development", "openai_client.py", ACTS, "chat"),
    Client("openai", RESPONSES, "development", "openai_client.py", ACTS, "responses"),
    Client("openai", CHAT, "python", "openai_client.py", ACTS, "chat"),
    Client("openai", RESPONSES, "python", "openai_client.py", ACTS, "responses"),
    Client(
        "anthropic", MESSAGES, "development", "anthropic_client.py", ACTS, "", {"error": "not_found_error"}
    ),
    Client("anthropic", MESSAGES, "old", "anthropic_client.py", ACTS, "", {"error": "not_found_error"}),
    Client("agent-framework-openai", CHAT, "python", "with_agent_framework.py", ACTS, "chat"),
    Client("agent-framework-openai", RESPONSES, "python", "with_agent_framework.py", ACTS, "responses"),
    Client("agno", CHAT, "frameworks", "with_agno.py", TALKS),
    Client("autogen-ext", CHAT, "frameworks", "with_autogen.py", TALKS),
    Client("dspy", CHAT, "frameworks", "with_dspy.py", ("answer", "embeddings")),
    Client("haystack-ai", CHAT, "frameworks", "with_haystack.py", (*TALKS, "embeddings")),
    Client("instructor", CHAT, "frameworks", "with_instructor.py", ("object",)),
    Client("langchain-anthropic", MESSAGES, "frameworks", "with_langchain_anthropic.py", TALKS),
    Client("langchain-openai", CHAT, "frameworks", "with_langchain_openai.py", (*MAKES, "embeddings")),
    Client("litellm", CHAT, "python", "with_litellm.py", ACTS, "openai", {"error": "context"}),
    Client("litellm", MESSAGES, "python", "with_litellm.py", ACTS, "anthropic", {"error": "context"}),
    Client("llama-index-llms-openai-like", CHAT, "frameworks", "with_llama_index.py", (*MAKES, "embeddings")),
    Client("llm", CHAT, "python", "llm_command.py", ("answer", "stream")),
    Client("mirascope", CHAT, "frameworks", "with_mirascope.py", MAKES),
    Client("openai-agents", CHAT, "python", "with_openai_agents.py", ACTS, "chat"),
    Client("openai-agents", RESPONSES, "python", "with_openai_agents.py", ACTS, "responses"),
    Client("pydantic-ai-slim", CHAT, "frameworks", "with_pydantic_ai.py", MAKES, "chat"),
    Client("pydantic-ai-slim", RESPONSES, "frameworks", "with_pydantic_ai.py", TALKS, "responses"),
    Client("smolagents", CHAT, "frameworks", "with_smolagents.py", TALKS),
    Client("strands-agents", CHAT, "frameworks", "with_strands.py", TALKS),
    # JavaScript
    Client("@ai-sdk/openai", CHAT, "node", "ai_sdk.mjs", MAKES, "openai-chat", {"steps": 2}),
    Client("@ai-sdk/openai", RESPONSES, "node", "ai_sdk.mjs", MAKES, "openai", {"steps": 2}),
    Client("@ai-sdk/openai-compatible", CHAT, "node", "ai_sdk.mjs", MAKES, "compatible", {"steps": 2}),
    Client("@ai-sdk/anthropic", MESSAGES, "node", "ai_sdk.mjs", MAKES, "anthropic", {"steps": 2}),
    Client("@anthropic-ai/sdk", MESSAGES, "node", "anthropic_client.mjs", TALKS),
    Client("@langchain/anthropic", MESSAGES, "node", "langchain_anthropic.mjs", TALKS),
    Client("@langchain/openai", CHAT, "node", "langchain_openai.mjs", (*MAKES, "embeddings")),
    Client("openai", CHAT, "node", "openai_client.mjs", DOES),
)

# On Ollama's own port; test_ollama_clients.py looks closer at them.
OLLAMA_CLIENTS = (
    Client("ollama", OLLAMA, "python", "ollama_client.py", DOES, "sync"),
    Client("ollama", OLLAMA, "python", "ollama_client.py", DOES, "async"),
    Client("langchain-ollama", OLLAMA, "python", "with_langchain_ollama.py", (*MAKES, "embeddings")),
    Client("litellm", OLLAMA, "python", "with_litellm_ollama.py", (*MAKES, "embeddings"), "ollama_chat"),
    Client("litellm", OLLAMA, "python", "with_litellm_ollama.py", NO_TOOLS, "ollama"),
    Client("ollama", OLLAMA, "node", "ollama_client.mjs", DOES),
)
