"""What the adapters need to know of models; api/control/ollama/ knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from api.protocols.base import InvalidProtocolRequest

NOT_FOUND = "model_not_found"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that a client named, as its engine serves it."""

    name: str  # by which Berth knows it
    takes_llama_fields: bool = True  # llama.cpp's own sampling fields
    unlimited_tokens: int | None = -1  # `max_tokens` of a completion without a limit


class ServedModels(Protocol):
    """The models of this Berth and of other nodes."""

    def find(self, name: str) -> ServedModel | None:
        """By Ollama's name; None if there is none."""

    def can_think(self, name: str) -> bool | None:
        """Whether the model's chat template knows reasoning; None = unknown. `name`: Berth's."""

    def context_length(self, name: str) -> int | None:
        """Tokens that a prompt and its completion may have together; None = unknown. `name`: Berth's."""


def find_model(models: ServedModels, name: str | None) -> ServedModel:
    """Raises InvalidProtocolRequest, in Ollama's words."""
    if not name:
        raise InvalidProtocolRequest("model is required", param="model", status=400)
    found = models.find(name)
    if found is None:
        raise InvalidProtocolRequest(not_found(name), param="model", code=NOT_FOUND, status=404)
    return found


def not_found(name: str) -> str:
    """Clients look for these words before they offer to pull the model."""
    return f"model '{name}' not found"
