"""Ollama's lists of models: what may be asked for, what is loaded, and everything about one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from api.access.keys import caller_of, may_see, may_use
from api.control.ollama import details
from api.http.asgi import Scope
from api.protocols.ollama.names import candidates, tagged
from instance_manager.backends.runner_kind import RunnerKind
from instance_manager.fleet.facts_reader import FactsReader
from instance_manager.fleet.fleet import Fleet
from instance_manager.fleet.model_facts import ModelFacts
from instance_manager.fleet.models import Model
from instance_manager.lifecycle.instance import Instance
from instance_manager.state.peers import is_unlisted, names_of

_FOR_EVER_S = 2**63 / 1e9  # as Ollama adds to the time for a model that never expires
_NO_DETAILS = details.details(ModelFacts(), {})


class Listing:
    """Lists what a caller's key may use. Methods read small files: call them in a thread."""

    def __init__(self, fleet: Fleet, facts: FactsReader) -> None:
        self._fleet = fleet
        self._facts = facts

    def tags(self, scope: Scope) -> list[dict[str, Any]]:
        """Every name of every model that is in lists; those of other nodes without details."""
        usable = [one for one in self._fleet.models if may_use(scope, one) and not one.is_unlisted]
        entries = [entry for model in usable for entry in self._entries(model)]
        caller, known = caller_of(scope), {entry["name"] for entry in entries}
        for name, record in sorted(self._fleet.manager.peers.models().items()):
            if tagged(name) in known or is_unlisted(record):
                continue
            if caller.may_use((name, *names_of(record))):
                entries.append(
                    _entry(name, details.digest(record.model_name), record.created_at, 0, _NO_DETAILS)
                )
        return sorted(entries, key=lambda entry: str(entry["modified_at"]), reverse=True)

    def loaded(self, scope: Scope) -> list[dict[str, Any]]:
        """The models that have an engine which can answer now; unlisted ones for admins alone."""
        loaded = [model for model in self._fleet.models if model.awake and may_see(scope, model)]
        entries = [self._loaded_entry(model) for model in loaded]
        return sorted(entries, key=lambda entry: str(entry["expires_at"]), reverse=True)

    def shown(self, model: Model, name: str) -> dict[str, Any]:
        """Everything about a model. `name`: as the client called it."""
        facts, header = self._facts.of(model), details.header_of(model)
        shown = _shown(name, facts, header, _modified(model))
        license_text = details.license_of(facts, header)
        return shown if license_text is None else {"license": license_text, **shown}

    def shown_of_peer(self, scope: Scope, name: str) -> dict[str, Any] | None:
        """Likewise of a model of another node, whose files are unknown here; None if the key may use none."""
        remote = self._fleet.manager.peers.models()
        for record in (remote[one] for one in candidates(name) if one in remote):
            if caller_of(scope).may_use(names_of(record)):
                pools = record.extra.get("runner") == RunnerKind.POOLING
                return _shown(name, ModelFacts(embeddings=pools), {}, record.created_at)
        return None

    def _entries(self, model: Model) -> Iterator[dict[str, Any]]:
        """An alias has its model's digest, as a copy has in Ollama."""
        profile, facts = model.profile, self._facts.of(model)
        size = 0 if profile is None else profile.size_bytes or 0
        others = () if profile is None else profile.other_names
        for name in dict.fromkeys((model.name, *others)):
            of_model = details.details(facts, details.header_of(model))
            yield _entry(name, details.digest_of(model), _modified(model), size, of_model)

    def _loaded_entry(self, model: Model) -> dict[str, Any]:
        facts, awake = self._facts.of(model), model.awake
        name = tagged(model.name)
        on_disk = 0 if model.profile is None else model.profile.size_bytes or 0
        return {
            "name": name,
            "model": name,
            "size": sum(one.memory_bytes or 0 for one in awake) or on_disk,
            "digest": details.digest_of(model),
            "details": details.details(facts, details.header_of(model)),
            "expires_at": details.moment(max(map(_expires, awake))),
            "size_vram": sum(one.gpu_memory_bytes or 0 for one in awake),
            "context_length": facts.context_length or 0,
        }


def _shown(name: str, facts: ModelFacts, header: details.Header, modified: float | None) -> dict[str, Any]:
    return {
        "modelfile": f"# Berth has no Modelfiles; models.yaml describes its models\nFROM {name}\n",
        "parameters": details.parameters(facts),
        "template": facts.chat_template or "",
        "details": details.details(facts, header),
        "model_info": details.model_info(facts, header),
        "capabilities": details.capabilities(facts),
        "modified_at": details.moment(modified),
    }


def _entry(
    name: str, digest: str, modified: float | None, size: int, of_model: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": tagged(name),
        "model": tagged(name),
        "modified_at": details.moment(modified),
        "size": size,
        "digest": digest,
        "details": of_model,
    }


def _modified(model: Model) -> float | None:
    """Of its files; where they are unknown, when its first instance was created."""
    if model.profile is not None and model.profile.modified is not None:
        return model.profile.modified
    return min((one.created_at for one in model.replicas.values()), default=None)


def _expires(instance: Instance) -> float:
    """An instance in use expires after its last request: as if that ended now."""
    expires = instance.view().live.expires_at
    if expires is not None:
        return expires
    is_busy = instance.gate.in_flight > 0 and instance.idle_timeout_s > 0 and not instance.pinned
    return time.time() + (instance.idle_timeout_s if is_busy else _FOR_EVER_S)
