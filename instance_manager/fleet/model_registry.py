"""The models that clients can request by name: the catalog's, and those of instances created by hand."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable

from instance_manager.backends.checkpoint import Checkpoint
from instance_manager.errors import ManagerError, ModelNotFound
from instance_manager.fleet.models import Model
from instance_manager.fleet.next_replica import spec_of
from instance_manager.fleet.profiles import ModelProfile
from instance_manager.fleet.replicas import is_replica_of, models_of
from instance_manager.lifecycle.instance import Instance
from instance_manager.manager import InstanceManager

logger = logging.getLogger("berth.fleet")

_MAX_SHOWN = 200  # characters of a name in a message
_MAX_NAMES = 10  # in a message
_MAX_SIMILAR_CHARS, _MAX_SIMILAR_OF = 100, 500  # of a name, of names: below, a search takes milliseconds


class ModelRegistry:
    """Models by name and alias, and which instances are replicas of which model."""

    def __init__(self, manager: InstanceManager, max_queue: int, clock: Callable[[], float]) -> None:
        self._manager = manager
        self._max_queue = max_queue
        self._clock = clock
        self.by_name: dict[str, Model] = {}
        self._aliases: dict[str, str] = {}  # alias → model

    def set_profiles(self, profiles: Iterable[ModelProfile]) -> frozenset[str]:
        """Replace the catalog; returns the names of models that are new, gone or changed."""
        wanted = {profile.name: profile for profile in profiles}
        old = {name: model.profile for name, model in self.by_name.items() if model.profile is not None}
        changed = {name for name in wanted.keys() | old.keys() if wanted.get(name) != old.get(name)}
        for name in changed:
            if name in wanted:
                model = self._get_or_add(name)
                model.profile = wanted[name]
                model.clear_failure()  # it may have been corrected
                model.replicas = {k: one for k, one in model.replicas.items() if self._belongs_to(one, model)}
            else:
                model = self.by_name[name]
                model.profile = None
                self.remove_if_unused(model)
            _publish_names(model)
        self._aliases = {other: name for name, profile in wanted.items() for other in profile.other_names}
        return frozenset(changed)

    def known(self, name: str) -> Model | None:
        """By name or alias, or by `model:adapter`."""
        return self._named(name) or self._split(name)[0]

    def adapter_in(self, name: str) -> str | None:
        """The adapter in `model:adapter`; None for a model's own name."""
        return None if self._named(name) else self._split(name)[1]

    def _named(self, name: str) -> Model | None:
        return self.by_name.get(self._aliases.get(name, name))

    def _split(self, name: str) -> tuple[Model | None, str | None]:
        """The model and the LoRA adapter of `model:adapter`, if its engines take adapters."""
        base, _, adapter = name.rpartition(":")
        model = self._named(base) if base and adapter else None
        return (model, adapter) if model is not None and model.takes_adapters else (None, None)

    def find(self, name: str) -> Model:
        """By name or alias. Raises ModelNotFound, which suggests similar names: finding those takes time."""
        model = self.known(name)
        if model is None:
            similar = self._similar_names(name)
            hint = (
                f"did you mean {' or '.join(map(repr, similar))}?" if similar else "GET /v1/models lists all"
            )
            shown = repr(name[:_MAX_SHOWN]) + ("…" if len(name) > _MAX_SHOWN else "")
            raise ModelNotFound(f"there is no model {shown}; {hint}", param="model")
        return model

    def names_like(self, name: str) -> str:
        """The models that an admin may have meant, or all, as the end of a sentence."""
        if similar := self._similar_names(name):
            return f"did you mean {' or '.join(map(repr, similar))}?"
        names = [model.name for model in self.listed]
        more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        return f"there are {', '.join(names[:_MAX_NAMES])}{more}" if names else "there are no models yet"

    def _similar_names(self, name: str) -> list[str]:
        """Names that the client may have meant; none where the search would take long."""
        known = [*(model.name for model in self.listed), *self._aliases]
        if len(name) > _MAX_SIMILAR_CHARS or len(known) > _MAX_SIMILAR_OF:
            return []
        by_lower_case = {other.lower(): other for other in known}
        similar = difflib.get_close_matches(name.lower(), by_lower_case, n=3, cutoff=0.5)
        return [by_lower_case[other] for other in similar]

    @property
    def listed(self) -> list[Model]:
        """All models that can be requested, sorted by name."""
        return [model for name, model in sorted(self.by_name.items()) if model.is_listed]

    def models_of(self, instance: Instance) -> list[Model]:
        """The models that an instance is a replica of."""
        return [self.by_name[name] for name in self._names_of(instance) if name in self.by_name]

    # Replicas.

    def add_replica(self, instance: Instance) -> None:
        """Add an instance under its profile's name, or under those it was created with.

        Not if it has ended and its model has left the catalog.
        """
        name = instance.spec.profile
        if name is not None and instance.state.is_terminal and name not in self.by_name:
            return
        for name in self._names_of(instance):
            model = self._get_or_add(name)
            if not self._belongs_to(instance, model):
                continue
            model.replicas[instance.instance_id] = instance
            if model.profile is not None and instance.spec.profile is not None:
                instance.set_other_names(model.profile.other_names, is_unlisted=model.is_unlisted)

    def _names_of(self, instance: Instance) -> Iterable[str]:
        """Of the models that its names stand for: one created by hand may serve an alias."""
        return dict.fromkeys(self._aliases.get(name, name) for name in models_of(instance))

    def remove_replica(self, instance_id: str) -> None:
        for model in list(self.by_name.values()):
            if model.replicas.pop(instance_id, None) is not None:
                self.remove_if_unused(model)

    def having_replica(self, instance_id: str) -> list[Model]:
        return [model for model in self.by_name.values() if instance_id in model.replicas]

    def remove_if_unused(self, model: Model) -> None:
        """An instance created by hand can be started again by name; one that the catalog dropped cannot."""
        replicas = model.replicas.values()
        is_used = any(one.spec.profile is None or not one.state.is_terminal for one in replicas)
        if model.profile is None and not is_used and not model.queue:
            self.by_name.pop(model.name, None)

    def _belongs_to(self, instance: Instance, model: Model) -> bool:
        """False for an instance created by hand under a catalog's name that loads another model.

        It can still be reached by its id and its other names.
        """
        profile = model.profile
        if profile is None or is_replica_of(instance, profile, self._manager.config.model_dirs):
            return True
        logger.warning(
            "instance=%s is named %s but loads %s, not the catalog's %s: requests for this name skip it",
            instance.instance_id,
            model.name,
            instance.model_name,
            profile.model,
        )
        return False

    def _get_or_add(self, name: str) -> Model:
        if name not in self.by_name:
            self.by_name[name] = Model(
                name,
                None,
                self._max_queue,
                self._clock,
                restart=self._manager.config.restart,
                find_checkpoint=self._checkpoint_of,
            )
        return self.by_name[name]

    def _checkpoint_of(self, profile: ModelProfile) -> Checkpoint | None:
        """None also where it can't be found: the start will report that."""
        try:
            return Checkpoint.of(spec_of(profile), self._manager.config)
        except ManagerError:
            return None


def _publish_names(model: Model) -> None:
    """Let other nodes know what the catalog calls the replicas that run here."""
    names = () if model.profile is None else model.profile.other_names
    for one in model.replicas.values():
        if one.spec.profile is not None and one.set_other_names(names, is_unlisted=model.is_unlisted):
            one.publish_update({"names": list(one.names)})
