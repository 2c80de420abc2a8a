"""configs/models.yaml: the models and how to run each of them. Checked as a whole, frozen.

Knows the file's content, not its use: composition/ passes it on. A missing file is an empty catalog.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from configs.bounded_file import read_bounded
from configs.catalog_error import NO_VALUE, CatalogError, collecting, combined
from configs.engine_kinds import EngineKinds
from configs.home import expand_home
from configs.model_entry import Filters, ModelDefaults, ModelEntry
from configs.watched_file import WatchedFile
from configs.yaml_document import KeyPath, YamlDocument, YamlMistake, read_yaml

_SECTIONS = ("defaults", "models")
_MERGED_BY_KEY = frozenset({"params", "env", "set_params"})
_MESSAGES = {
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "tuple_type": "must be a list",
    "is_instance_of": "must be a path",
    "string_pattern_mismatch": "must begin with '/' and contain no spaces",
    "string_type": "must be text; put it in quotes",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
}

_Kind = TypeVar("_Kind", bound=ModelDefaults)


@dataclass(frozen=True, slots=True)
class Catalog:
    """Every model of one models.yaml."""

    models: Mapping[str, ModelEntry] = field(default_factory=lambda: MappingProxyType({}))
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))  # as written
    folder: Path = Path()  # of the file, absolute
    kinds: EngineKinds | None = None

    def resolve(self, name: str) -> str | None:
        """The model's own name for a name or alias; None: not in the catalog."""
        if name in self.models:
            return name
        return next((model for model, entry in self.models.items() if name in entry.aliases), None)

    def found_entry(self, path: Path) -> ModelEntry:
        """The entry, from `defaults:`, of a model that was found on disk and isn't in the file."""
        fields = {**self.defaults, "path": str(path)}
        return ModelEntry.model_validate(fields, context=self.kinds).located("", self.folder)


class CatalogFile:
    """The catalog of one file, read again when it has changed."""

    def __init__(
        self, path: Path, check: Callable[[Catalog], None] | None = None, kinds: EngineKinds | None = None
    ) -> None:
        """`check` raises CatalogError for mistakes that the file alone doesn't show. Raises CatalogError."""
        self.path = path
        self._check = check
        self._kinds = kinds
        self._watched = WatchedFile(path)
        self.current = load_catalog(path, check, kinds)

    def reload_if_changed(self) -> frozenset[str] | None:
        """The names of models that are new, gone or changed; None if the file is unchanged. Blocks.

        Raises CatalogError for a mistake, once for each change of the file; `current` then stays as it was.
        """
        return self.reload() if self._watched.has_changed() else None

    def reload(self) -> frozenset[str]:
        """The same, but raises for a mistake each time."""
        self._watched.mark_read()
        new, old = load_catalog(self.path, self._check, self._kinds), self.current
        self.current = new
        names = new.models.keys() | old.models.keys()
        return frozenset(name for name in names if new.models.get(name) != old.models.get(name))


def load_catalog(
    path: Path, check: Callable[[Catalog], None] | None = None, kinds: EngineKinds | None = None
) -> Catalog:
    """Read and check models.yaml. Raises CatalogError for mistakes, also those that `check` finds.

    `kinds`: the engines that it may name; None = any.
    """
    text = read_text(path)
    if text is None:
        return Catalog(folder=folder_of(path), kinds=kinds)
    catalog = parse_catalog(text, path, kinds)
    if check is not None:
        try:
            check(catalog)
        except CatalogError as error:
            raise error.found_in(text) from None
    return catalog


def read_text(path: Path) -> str | None:
    """The file's text with its line ends; None: there is no such file. Raises CatalogError."""
    try:
        return read_bounded(path).decode("utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CatalogError(path, f"can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise CatalogError(
            path, f"byte {error.object[error.start]:#04x} isn't valid UTF-8", line=line
        ) from None


def folder_of(path: Path) -> Path:
    """The base of relative paths in the file."""
    return expand_home(path).absolute().parent


def parse_catalog(text: str, path: Path, kinds: EngineKinds | None = None) -> Catalog:
    """The catalog from `text`, as if it were the content of `path`. Raises CatalogError."""
    try:
        document = read_yaml(text)
    except YamlMistake as error:
        raise CatalogError(path, error.problem, line=error.line, keys=error.keys) from None
    return _Reader(path, document, kinds).catalog()


def merge_defaults(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A model's fields over the defaults, as written; null removes a default.

    `params`, `env` and `filters` are merged key by key, everything else is replaced. A null in `params` or
    `set_params` is kept, as it has a meaning for the engine.
    """
    merged = dict(defaults)
    for key, value in own.items():
        inherited = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif not (isinstance(value, Mapping) and isinstance(inherited, Mapping)):
            merged[key] = value
        elif key in _MERGED_BY_KEY:
            merged[key] = {**inherited, **value}
        else:
            merged[key] = merge_defaults(inherited, value) if key == "filters" else value
    if isinstance(env := merged.get("env"), Mapping):
        merged["env"] = {name: value for name, value in env.items() if value is not None}
    return merged


class _Reader:
    """Checks one document; finds the lines of its mistakes."""

    def __init__(self, path: Path, document: YamlDocument, kinds: EngineKinds | None) -> None:
        self._path = path
        self._folder = folder_of(path)
        self._document = document
        self._kinds = kinds

    def catalog(self) -> Catalog:
        data = self._mapping(self._document.data, ())
        mistakes = [
            self._error((key,), f"unknown key; {_hint(key, _SECTIONS)}; models belong under `models`")
            for key in data
            if key not in _SECTIONS
        ]
        defaults = self._defaults(data, mistakes)
        models: dict[str, ModelEntry] = {}
        with collecting(mistakes):
            for name, fields in self._mapping(data.get("models"), ("models",)).items():
                with collecting(mistakes):
                    models[name] = self._entry(name, fields, defaults)
        mistakes += self._mistakes_in_aliases(models)
        if mistakes:
            unique = {
                str(one): one for one in mistakes
            }  # a mistake in `defaults` appears once, not per model
            raise combined(sorted(unique.values(), key=lambda one: one.line or 0))
        return Catalog(MappingProxyType(models), MappingProxyType(defaults), self._folder, self._kinds)

    def _defaults(self, data: Mapping[str, Any], mistakes: list[CatalogError]) -> dict[str, Any]:
        """As written, without invalid fields: models are checked with the others."""
        defaults: dict[str, Any] = {}
        with collecting(mistakes):
            defaults = merge_defaults({}, self._mapping(data.get("defaults"), ("defaults",)))
            try:
                self._validated(ModelDefaults, defaults, ("defaults",))
            except CatalogError as error:
                invalid = {one.keys[1] for one in (error, *error.more) if len(one.keys) > 1}
                defaults = {key: value for key, value in defaults.items() if key not in invalid}
                raise
        return defaults

    def _entry(self, name: str, fields: Any, defaults: Mapping[str, Any]) -> ModelEntry:
        keys = ("models", name)
        if not is_model_name(name):
            raise self._error(
                keys,
                "a name must be printable text without spaces around it, and no part of it '', '.' or '..'",
            )
        merged = merge_defaults(defaults, self._mapping(fields, keys))
        return self._validated(ModelEntry, merged, keys).located(name, self._folder)

    def _validated(self, kind: type[_Kind], fields: Mapping[str, Any], keys: KeyPath) -> _Kind:
        try:
            return kind.model_validate(fields, context=self._kinds)
        except ValidationError as error:
            raise combined([self._mistake(one, keys) for one in error.errors(include_url=False)]) from None

    def _mistake(self, details: ErrorDetails, keys: KeyPath) -> CatalogError:
        loc = tuple(details["loc"])
        at, _ = self._document.find((*keys, *loc))
        if len(at) <= len(keys) and loc:
            inherited, _ = self._document.find(("defaults", *loc))
            at = inherited if len(inherited) > 1 else (*keys, loc[0])
        return self._error(at, _problem(details), _shown_value(details))

    def _mistakes_in_aliases(self, models: Mapping[str, ModelEntry]) -> Iterator[CatalogError]:
        owners = {name: name for name in models}
        for name, entry in models.items():
            for index, alias in enumerate(entry.aliases):
                keys = ("models", name, "aliases", index)
                if not is_model_name(alias):
                    yield self._error(keys, "an alias must be a valid model name", alias)
                    continue
                owner = owners.setdefault(alias, name)
                if alias in models or owner != name or alias in entry.aliases[:index]:
                    yield self._error(keys, f"is already a name of {owner!r}; choose another", alias)

    def _mapping(self, value: Any, keys: KeyPath) -> Mapping[str, Any]:
        """The mapping at `keys`; a missing value counts as an empty one."""
        if isinstance(value, Mapping):
            return value
        if value is None:
            return {}
        raise self._error(keys, "must be a mapping (`key: value`)", value)

    def _error(self, keys: KeyPath, problem: str, value: Any = NO_VALUE) -> CatalogError:
        _, line = self._document.find(keys)
        return CatalogError(self._path, problem, line=line, keys=keys, value=value)


def is_model_name(name: str) -> bool:
    """Whether a name can be used in a URL path unchanged, with its slashes."""
    parts = name.split("/")
    return name.isprintable() and name == name.strip() and not {"", ".", ".."} & set(parts)


def _problem(details: ErrorDetails) -> str:
    """The mistake and what is allowed."""
    kind, context = details["type"], details.get("ctx", {})
    if kind == "extra_forbidden":
        fields = Filters.model_fields if details["loc"][0] == "filters" else ModelEntry.model_fields
        return f"unknown key; {_hint(str(details['loc'][-1]), fields)}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        close = difflib.get_close_matches(str(details["input"]), _quoted(context["expected"]), n=1)
        return f"must be {context['expected']}" + (f"; did you mean {close[0]}?" if close else "")
    return _MESSAGES.get(kind) or details["msg"].replace("Input should be", "must be").replace(
        "String should", "must"
    )


def _quoted(expected: str) -> list[str]:
    return expected.split("'")[1::2]


def _hint(key: str, known: Iterable[str]) -> str:
    known = list(known)
    key = key.replace("-", "_").lower()
    close = difflib.get_close_matches(key, known, n=1) or [name for name in known if name.startswith(key)]
    return f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"


def _shown_value(details: ErrorDetails) -> Any:
    """The value, unless it is missing, is a collection, or may be a secret."""
    value = details["input"]
    hidden = isinstance(value, Mapping | list | tuple) or details["loc"][:1] == ("env",)
    return NO_VALUE if hidden or details["type"] == "extra_forbidden" else value
