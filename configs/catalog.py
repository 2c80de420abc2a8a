"""configs/models.yaml: which models there are and how each is to be run. Checked as a whole, frozen.

Knows what the file says, not what is done with it: app.py hands it on. A missing file is an empty catalog.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from configs.model_entry import Filters, ModelDefaults, ModelEntry
from configs.yaml_document import KeyPath, YamlDocument, YamlMistake, read_yaml

_T = TypeVar("_T", bound=BaseModel)

_SECTIONS = ("defaults", "models")
_MERGED = ("env", "filters", "set_params")  # mappings that `defaults:` and a model share
_NOTHING = object()


class CatalogError(Exception):
    """The catalog is wrong; the message is one line: file and line, key, value, and what is allowed."""

    def __init__(
        self, path: Path, problem: str, *, line: int | None = None, keys: KeyPath = (), value: Any = _NOTHING
    ) -> None:
        self.path = path
        self.line = line
        self.keys = keys
        self.problem = problem
        self.value = value
        place = f"{path}:{line}" if line else f"{path}"
        key = ".".join(map(str, keys))
        shown = "" if value is _NOTHING else f"={_SHORT.repr(value)}"
        super().__init__(f"{place}: {key}{shown}: {problem}" if key else f"{place}: {problem}")

    def without_line(self) -> CatalogError:
        """The same about a text that is in no file."""
        return CatalogError(self.path, self.problem, keys=self.keys, value=self.value)


@dataclass(frozen=True, slots=True)
class Catalog:
    """Every model of one models.yaml."""

    models: Mapping[str, ModelEntry] = field(default_factory=lambda: MappingProxyType({}))
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    folder: Path = Path()  # the file's; paths in it begin there

    def resolve(self, name: str) -> str | None:
        """The name of the model that `name` is, or is an alias of; None: not in the catalog."""
        if name in self.models:
            return name
        return next((model for model, entry in self.models.items() if name in entry.aliases), None)

    def found_entry(self, path: Path) -> ModelEntry:
        """What `defaults:` makes of a model that was found on disk and is not in the file."""
        return ModelEntry.model_validate({**self.defaults, "path": str(path)}).located("", self.folder)


def load_catalog(path: Path) -> Catalog:
    """Read and check models.yaml. Raises CatalogError for the first mistake."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return Catalog(folder=_folder(path))
    except OSError as error:
        raise CatalogError(path, f"can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise CatalogError(path, f"byte {error.object[error.start]:#04x} is no UTF-8", line=line) from None
    return parse_catalog(text, path)


def parse_catalog(text: str, path: Path) -> Catalog:
    """The catalog that `text` would be in the file `path`. Raises CatalogError."""
    try:
        document = read_yaml(text)
    except YamlMistake as error:
        raise CatalogError(path, error.problem, line=error.line, keys=error.keys) from None
    return _Reader(path, document).catalog()


class _Reader:
    """One pass over one document; knows where things stand when something is wrong."""

    def __init__(self, path: Path, document: YamlDocument) -> None:
        self._path = path
        self._document = document

    def catalog(self) -> Catalog:
        data = self._mapping(self._document.data, ())
        for key in data:
            if key not in _SECTIONS:
                raise self._error(
                    (key,), f"unknown key; {_hint(key, _SECTIONS)}, and models stand in `models`"
                )
        defaults = self._mapping(data.get("defaults"), ("defaults",))
        defaults = {key: value for key, value in defaults.items() if value is not None}
        self._validate(ModelDefaults, defaults, ("defaults",))
        models = {
            name: self._entry(name, raw, defaults)
            for name, raw in self._mapping(data.get("models"), ("models",)).items()
        }
        self._check_aliases(models)
        return Catalog(MappingProxyType(models), MappingProxyType(defaults), _folder(self._path))

    def _entry(self, name: str, raw: Any, defaults: Mapping[str, Any]) -> ModelEntry:
        keys = ("models", name)
        if not name.isprintable() or name != name.strip() or {"", ".", ".."} & set(name.split("/")):
            raise self._error(
                keys, "a name is printable text without space around it; between its '/' is more than dots"
            )
        merged = merge_defaults(defaults, self._mapping(raw, keys))
        return self._validate(ModelEntry, merged, keys).located(name, _folder(self._path))

    def _validate(self, kind: type[_T], data: Mapping[str, Any], keys: KeyPath) -> _T:
        try:
            return kind.model_validate(data)
        except ValidationError as error:
            raise self._explained(error.errors()[0], kind, keys) from None

    def _explained(self, error: ErrorDetails, kind: type[BaseModel], keys: KeyPath) -> CatalogError:
        """The first mistake, at the key it is about; what is wrong in a value's inside is told at its key."""
        where = (*keys, *error["loc"])
        if error["type"] == "extra_forbidden":
            known = Filters if error["loc"][:1] == ("filters",) else kind
            return self._error(where, f"unknown key; {_hint(str(where[-1]), list(known.model_fields))}")
        problem = str(error["msg"]).removeprefix("Value error, ")
        is_whole = error["type"] == "value_error" and not error["loc"]
        return self._error(where, problem, _NOTHING if is_whole else error["input"])

    def _check_aliases(self, models: Mapping[str, ModelEntry]) -> None:
        taken = {name: name for name in models}
        for name, entry in models.items():
            for alias in entry.aliases:
                if taken.setdefault(alias, name) != name or alias == name:
                    raise self._error(
                        ("models", name, "aliases"), f"{alias!r} is a name of {taken[alias]!r} already", alias
                    )

    def _mapping(self, value: Any, keys: KeyPath) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._error(keys, "must be a mapping of keys to values", value)
        for key in value:
            if not isinstance(key, str):
                raise self._error((*keys, key), "keys are text; put it in quotes", key)
        return value

    def _error(self, keys: KeyPath, problem: str, value: Any = _NOTHING) -> CatalogError:
        line = self._document.find(keys)[1]
        return CatalogError(self._path, problem, line=line, keys=keys, value=value)


class CatalogFile:
    """The catalog of one file, read again when it has changed."""

    def __init__(self, path: Path) -> None:
        """Raises CatalogError."""
        self.path = path
        self._seen = _stamp(path)
        self.current = load_catalog(path)

    def reload_if_changed(self) -> frozenset[str] | None:
        """The names of models that are new, gone or changed; None where the file is as it was.

        Raises CatalogError for a mistake, once for each change of the file; `current` stays as it was then.
        """
        stamp = _stamp(self.path)
        return None if stamp == self._seen else self.reload()

    def reload(self) -> frozenset[str]:
        """Read it whether it has changed or not; the names that have. Raises CatalogError."""
        self._seen = _stamp(self.path)
        new, old = load_catalog(self.path), self.current
        self.current = new
        names = new.models.keys() | old.models.keys()
        return frozenset(name for name in names if new.models.get(name) != old.models.get(name))


def merge_defaults(defaults: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry over the defaults; mappings that both have are merged, an explicit null takes away."""
    merged = dict(defaults)
    for key, value in entry.items():
        below = merged.get(key)
        if key in _MERGED and isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge_defaults(below, value)
        elif value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _hint(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"


def _folder(path: Path) -> Path:
    return path.absolute().parent


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
