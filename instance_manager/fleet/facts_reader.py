"""What each model can do as its engine serves it: its files' facts, as far as engine and flags allow."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instance_manager.backends import Backend, backend_of, plan_launch
from instance_manager.backends.model_paths import find_model
from instance_manager.backends.runner_kind import RunnerKind
from instance_manager.config import ManagerConfig
from instance_manager.errors import ManagerError
from instance_manager.fleet.model_facts import ModelFacts, read_facts, with_description
from instance_manager.fleet.models import Model
from instance_manager.fleet.next_replica import spec_of
from instance_manager.fleet.profiles import ModelProfile
from instance_manager.memory.checkpoint_size import locate
from instance_manager.process.environment import child_environment
from instance_manager.process.hub_cache import hub_cache
from instance_manager.types import InstanceSpec

_FILES = ("", "config.json", "tokenizer_config.json", "chat_template.jinja")  # that decide the facts


@dataclass(frozen=True, slots=True)
class _Planned:
    """A spec as it would be started."""

    backend: Backend
    model: str | None  # a path or a hub id; None = its engine alone knows
    params: Mapping[str, Any]
    runner: RunnerKind | None
    environ: Mapping[str, str]


class FactsReader:
    """Looks at a catalog's files in `read`, and reads those again that have changed."""

    def __init__(self, config: ManagerConfig) -> None:
        self._config = config
        self._planned: dict[str, tuple[ModelProfile | InstanceSpec, _Planned | None]] = {}  # by model
        self._served: dict[str, tuple[ModelProfile | InstanceSpec, ModelFacts]] = {}  # by model
        self._facts: dict[Path, tuple[tuple[int, ...], ModelFacts]] = {}

    def of(self, model: Model) -> ModelFacts:
        """Of a model as its next replica would serve it; as last read, so that lists take no time."""
        source = model.profile or next((one.spec for one in model.replicas.values()), None)
        if source is None:
            return ModelFacts()
        known = self._served.get(model.name)
        if known is None or known[0] != source:
            known = self._served[model.name] = (source, self._of(model.name, source))
        return known[1]

    def read(self, profiles: Iterable[ModelProfile]) -> None:
        """Of a whole catalog. Blocks: call it in a thread."""
        for profile in profiles:
            self._served[profile.name] = (profile, self._of(profile.name, profile))

    def _of(self, name: str, source: ModelProfile | InstanceSpec) -> ModelFacts:
        known = self._planned.get(name)
        if known is None or known[0] != source:
            spec = spec_of(source) if isinstance(source, ModelProfile) else source
            known = self._planned[name] = (source, self._plan(spec))
        description = source.description if isinstance(source, ModelProfile) else None
        return ModelFacts() if known[1] is None else self._facts_of(known[1], description)

    def _plan(self, spec: InstanceSpec) -> _Planned | None:
        """None where there is no plan: a start will report why."""
        backend = backend_of(spec.engine)
        try:
            plan = plan_launch(spec, self._config)
            model = find_model(spec.model_name, self._config.model_dirs) if backend.finds_model else None
        except ManagerError:
            return None
        environ = child_environment(os.environ, self._config.engine_env, spec.env)
        return _Planned(backend, model, plan.params, plan.runner, environ)

    def _facts_of(self, planned: _Planned, description: Mapping[str, Any] | None) -> ModelFacts:
        path = None
        if planned.model is not None:
            path = locate(planned.model, planned.environ, planned.params.get("revision"))
        if path is None:
            return _as_served(ModelFacts(), planned)
        facts = self._read(path)
        if description is not None:
            facts = with_description(facts, description)
        is_in_cache = path.is_relative_to(hub_cache(planned.environ))
        return _as_served(replace(facts, is_in_cache=is_in_cache), planned)

    def _read(self, path: Path) -> ModelFacts:
        version = tuple(_modified_ns(path / name) for name in _FILES)
        known = self._facts.get(path)
        if known is None or known[0] != version:
            known = self._facts[path] = (version, read_facts(path))
        return known[1]


def _as_served(facts: ModelFacts, planned: _Planned) -> ModelFacts:
    """Without what this engine, or this way to run it, can't do."""
    pools = True if facts.embeddings or facts.rerank else None
    if planned.runner is not None:
        pools = planned.runner is RunnerKind.POOLING
    reranks = bool(pools and (facts.has_one_label or facts.rerank))
    takes_files = planned.backend.takes_modalities
    return replace(
        facts,
        context_length=_limit(planned.params) or facts.context_length,
        inputs=facts.inputs if takes_files else facts.inputs[:1],
        outputs=() if pools is None else (("embeddings",) if pools else ("text",)),
        tools=False if pools else facts.tools and planned.backend.calls_tools(planned.params),
        reasoning=None if pools else facts.reasoning,
        embeddings=None if pools is None else pools and not reranks and facts.has_one_label is None,
        rerank=None if pools is None or facts.path is None else reranks,
        chat_template=None if pools else facts.chat_template,
    )


def _limit(params: Mapping[str, Any]) -> int | None:
    limit = params.get("max_model_len")
    return limit if type(limit) is int else None


def _modified_ns(path: Path) -> int:
    """Modification time; 0 for a missing file."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
