"""Ollama's API for requests to a model, translated to OpenAI's: chat, generate, embed, embeddings."""

from __future__ import annotations

from typing import Any

from api.protocols.base import ProtocolAdapter
from api.protocols.ollama.adapters import OllamaChat, OllamaGenerate
from api.protocols.ollama.embeddings import OllamaEmbed, OllamaEmbeddings
from api.protocols.ollama.served_models import ServedModels


def ollama_adapters(models: ServedModels) -> tuple[ProtocolAdapter[Any], ...]:
    """The adapters of all routes."""
    return (OllamaChat(models), OllamaGenerate(models), OllamaEmbed(models), OllamaEmbeddings(models))
