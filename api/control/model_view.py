"""What clients see of a model: the one place that describes it, for every API that lists models.

`public`: for callers that may not read logs; they see neither paths nor commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import PurePath
from typing import Any

from instance_manager.backends.params import mask_command, mask_params
from instance_manager.fleet.facts_reader import FactsReader
from instance_manager.fleet.model_facts import ModelFacts
from instance_manager.fleet.models import Model
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.instance_view import failure_record
from instance_manager.state.peers import names_of
from instance_manager.state.stores.records import InstanceRecord
from instance_manager.types import InstanceFailure, InstanceState

_SETTLED = (InstanceState.RUNNING, InstanceState.SLEEPING)
_PHASES = ("download", "weights", "warm-up")  # in this order
_NO_CODE = 1  # llama.cpp's exit code for a process that a signal ended

Progress = Mapping[str, Mapping[str, int]]  # by file: bytes `done` of `total`


class LoadState(StrEnum):
    """llama.cpp's words for the state of a model, in `status.value`."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    SLEEPING = "sleeping"
    DOWNLOADING = "downloading"


_WORDS = {
    InstanceState.STARTING: LoadState.LOADING,
    InstanceState.HEALTH_CHECKING: LoadState.LOADING,
    InstanceState.WAKING: LoadState.LOADING,
    InstanceState.RUNNING: LoadState.LOADED,
    InstanceState.SLEEPING: LoadState.SLEEPING,
}
_BEST_FIRST = (LoadState.LOADED, LoadState.LOADING, LoadState.SLEEPING)


def state_of_replicas(model: Model) -> LoadState:
    """The best state among a model's processes. One that is being stopped holds its memory still."""
    words = {
        (LoadState.LOADED if one.ready_at else LoadState.LOADING)
        if one.state is InstanceState.STOPPING
        else _WORDS.get(one.state)
        for one in model.replicas.values()
    }
    return next((word for word in _BEST_FIRST if word in words), LoadState.UNLOADED)


def load_state(model: Model) -> LoadState:
    """Also `loading` while a start waits for memory."""
    state = state_of_replicas(model)
    is_underway = model.is_starting or model.start_requested
    return LoadState.LOADING if is_underway and state is not LoadState.LOADED else state


def failure_of(model: Model) -> InstanceFailure | None:
    """The latest failure among its replicas."""
    failures = (one.failure for one in reversed(model.replicas.values()))
    return next((failure for failure in failures if failure is not None), None)


def exit_code_of(model: Model) -> int:
    """As llama.cpp reports it: 0 unless the model's last process, or its start, has failed."""
    latest = next(reversed(model.replicas.values()), None)
    if latest is None or latest.failure is None:
        return _NO_CODE if model.error is not None else 0
    code = latest.failure.exit_code
    return _NO_CODE if code is None else code


def load_progress(model: Model) -> dict[str, Any] | None:
    """llama.cpp's `progress` of a start, with phases in place of the parts of a model. None = unknown."""
    found = getattr(model, "load_progress", None)  # a phase and its fraction, where engines' logs are read so
    if found is None:
        return None
    progress = {"stages": list(_PHASES), "current": found.phase}
    return progress if found.fraction is None else {**progress, "value": found.fraction}


def status_object(model: Model, *, public: bool) -> dict[str, Any]:
    """llama.cpp's `status`."""
    status: dict[str, Any] = {"value": load_state(model).value}
    live = next(iter(model.live), None)
    if live is not None and live.command and not public:
        status["args"] = mask_command(live.command)
    if status["value"] == LoadState.LOADING and (progress := load_progress(model)) is not None:
        status["progress"] = progress
    if model.status == "failed":
        status |= {"failed": True, "exit_code": exit_code_of(model) or _NO_CODE}
    return status


def openai_entries(model: Model, facts: FactsReader, *names: str, public: bool) -> list[dict[str, Any]]:
    """Entries for all names of a model and `names`; an alias's root and parent are the model."""
    entry = openai_entry(model, facts.of(model), public=public)
    others = dict.fromkeys((*(model.profile.other_names if model.profile else ()), *names))
    others.pop(model.name, None)
    return [entry, *({**entry, "id": name, "root": model.name, "parent": model.name} for name in others)]


def openai_entry(model: Model, facts: ModelFacts, *, public: bool) -> dict[str, Any]:
    """A model in the format of OpenAI and vLLM, with llama.cpp's and llama-swap's fields."""
    profile = model.profile
    replica = next(iter(model.replicas.values()), None)
    limit = (replica.plan.params if replica else profile.params if profile else {}).get("max_model_len")
    if limit is None and profile is not None and profile.description is not None:
        limit = profile.description["context_length"]  # what the model was trained for
    created = min((instance.created_at for instance in model.replicas.values()), default=0)
    entry = {
        "id": model.name,
        "object": "model",
        "created": int(created),
        "owned_by": "berth",
        "root": profile.model if profile else (replica.model_name if replica else model.name),
        "parent": None,
        "max_model_len": limit,
        "status": status_object(model, public=public),
        "state": model.status,
        "problem": model.problem(public=public),
        "aliases": list(profile.aliases) if profile else [],
        **({"metadata": dict(profile.metadata)} if profile and profile.metadata else {}),
        **_abilities(facts, is_live=bool(model.live)),
        **({"path": str(facts.path)} if facts.path is not None and not public else {}),
    }
    return hide_path(entry, public=public)


def hide_path(entry: dict[str, Any], *, public: bool) -> dict[str, Any]:
    """The entry without the model's path on this machine, if it is public."""
    is_path = "/" in entry["root"] and PurePath(entry["root"]).is_absolute()
    return entry | {"root": entry["id"]} if public and is_path else entry


def _abilities(facts: ModelFacts, *, is_live: bool) -> dict[str, Any]:
    """What it can do and what its files are; what is unknown is left out."""
    architecture = {"input_modalities": list(facts.inputs), "output_modalities": list(facts.outputs)}
    capabilities = {
        "context_length": facts.context_length,
        "vision": "image" in facts.inputs if facts.inputs else None,
        "tools": facts.tools,
        "reasoning": facts.reasoning,
        "embeddings": facts.embeddings,
        "rerank": facts.rerank,
    }
    meta = {
        "n_ctx": facts.context_length,
        "n_vocab": facts.vocabulary_size,
        "n_embd": facts.hidden_size,
    }
    parts: dict[str, Any] = {
        "architecture": _known(architecture),
        "capabilities": _known(capabilities),
        "context_length": facts.context_length,
        "meta": _known(meta) if is_live else None,
        "in_cache": facts.is_in_cache if facts.path is not None else None,
    }
    return _known(parts)


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, [], {})}


def remote_entry(name: str, record: InstanceRecord) -> dict[str, Any]:
    """The same for a model that only another node knows, by one of its names."""
    model = names_of(record)[0]
    is_alias = record.spec.profile is not None and name != model
    return {
        "id": name,
        "object": "model",
        "created": int(record.created_at),
        "owned_by": "berth",
        "root": model if is_alias else record.model_name,
        "parent": model if is_alias else None,
        "max_model_len": record.params.get("max_model_len"),
        "status": {"value": _WORDS.get(record.state, LoadState.UNLOADED).value},
        "state": record.state.value if record.state in _SETTLED else "starting",
        "problem": None,
    }


def model_record(model: Model, facts: FactsReader) -> dict[str, Any]:
    """Everything known about a model. Times are seconds since the epoch."""
    profile = model.profile
    replicas = list(model.replicas.values())
    live = model.live
    latest = replicas[-1] if replicas else None
    return {
        **openai_entry(model, facts.of(model), public=False),
        "name": model.name,
        "model": profile.model if profile else (latest.model_name if latest else model.name),
        "engine": profile.engine if profile else (latest.spec.engine if latest else None),
        "engine_reason": _engine_reason(model) or None,
        "source": profile.source.value if profile else "instance",
        "unlisted": profile.unlisted if profile else False,
        "size_bytes": profile.size_bytes if profile else None,
        "modified": profile.modified if profile else None,
        "description": profile.description if profile else None,
        "pinned": profile.pinned if profile else any(instance.pinned for instance in live),
        "params": mask_params(profile.params if profile else (latest.plan.params if latest else {})),
        "devices": list(profile.devices) if profile and profile.devices is not None else None,
        "timeout": profile.idle_timeout_s if profile else (latest.idle_timeout_s if latest else None),
        "replicas": [instance.instance_id for instance in live],
        "in_flight": model.in_flight,
        "queued": len(model.queue),
        "memory_bytes": sum(instance.memory_bytes or 0 for instance in live) if live else None,
        "last_used": _last_used(replicas),
        "error": _error_of(model),
    }


def _engine_reason(model: Model) -> str:
    """Why it is this engine; empty if it was asked for."""
    if model.profile is not None:
        return model.profile.engine_reason
    latest = next(reversed(model.replicas.values()), None)
    return latest.spec.engine_reason if latest is not None else ""


def _last_used(replicas: list[Instance]) -> float | None:
    return max((each.last_active_at for each in replicas if each.ready_at), default=None)


def _error_of(model: Model) -> dict[str, Any] | None:
    """Why its last start failed."""
    if model.error is None:
        return None
    failure = failure_of(model)
    if failure is None:
        return {"class": model.error.code, "message": str(model.error)}
    return failure_record(failure) | {"message": str(model.error)}


def downloading(model: Model, progress: Progress, facts: FactsReader, *, public: bool) -> dict[str, Any]:
    """Of a model that is being downloaded and not known yet; `model`: one of that name, without a profile."""
    shown = openai_entry(model, facts.of(model), public=True) if public else model_record(model, facts)
    status = {
        "value": LoadState.DOWNLOADING.value,
        "progress": {name: dict(of) for name, of in progress.items()},
    }
    return shown | {"status": status, "state": LoadState.DOWNLOADING.value}
