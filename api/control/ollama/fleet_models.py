"""The fleet's models as the adapters of Ollama's routes see them (api/protocols/ollama/served_models.py)."""

from __future__ import annotations

from api.protocols.ollama.names import candidates
from api.protocols.ollama.served_models import ServedModel
from instance_manager.backends import Backend, backend_of
from instance_manager.fleet.facts_reader import FactsReader
from instance_manager.fleet.fleet import Fleet
from instance_manager.fleet.models import Model


class FleetModels:
    """Finds models by Ollama's names."""

    def __init__(self, fleet: Fleet, facts: FactsReader) -> None:
        self._fleet = fleet
        self._facts = facts

    def find(self, name: str) -> ServedModel | None:
        if (found := self.known(name)) is not None:
            return _served(*found)
        remote = self._fleet.manager.peers.models()
        return next((ServedModel(one) for one in candidates(name) if one in remote), None)

    def known(self, name: str) -> tuple[str, Model] | None:
        """A model of this node, and Berth's name for it."""
        for candidate in candidates(name):
            model = self._fleet.known(candidate)
            if model is not None and model.is_listed:
                return candidate, model
        return None

    def can_think(self, name: str) -> bool | None:
        """Reads small files, if they have changed."""
        model = self._fleet.known(name)
        if model is None:
            return None
        facts = self._facts.of(model)
        return bool(facts.reasoning) if facts.chat_template is not None else None

    def context_length(self, name: str) -> int | None:
        """Likewise."""
        model = self._fleet.known(name)
        return None if model is None else self._facts.of(model).context_length


def _served(name: str, model: Model) -> ServedModel:
    backend = _backend(model)
    if backend is None:
        return ServedModel(name)
    return ServedModel(name, backend.takes_llama_fields, backend.unlimited_tokens)


def _backend(model: Model) -> Backend | None:
    """None for a model that nobody has started."""
    if model.profile is not None:
        return backend_of(model.profile.engine)
    return next((backend_of(one.spec.engine) for one in model.replicas.values()), None)
