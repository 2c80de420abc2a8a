"""Changes to models.yaml that leave everything else in it as it was, comments too."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from configs.catalog import CatalogError, parse_catalog


def edit_model(path: Path, name: str, changes: Mapping[str, Any]) -> None:
    """Change a model's entry, or add it; None takes a key out. The file changes at one stroke.

    Raises CatalogError where the file can't be read or written, or would not be valid: then it is as before.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogError(path, f"can't be read: {error}") from None
    if text:
        parse_catalog(text, path)  # what is wrong already is told with its line
    edited = _edited(text, name, changes)
    try:
        parse_catalog(edited, path)
    except CatalogError as error:
        raise error.without_line() from None
    try:
        _replace(path, edited)
    except OSError as error:
        raise CatalogError(path, f"can't be written: {error.strerror or error}") from None


def _edited(text: str, name: str, changes: Mapping[str, Any]) -> str:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 1 << 16
    try:
        document = yaml.load(text)
    except YAMLError as error:  # parsed once already, by the other reader
        raise CatalogError(Path(), f"can't be edited: {error}") from None
    if document is None:  # nothing but comments
        body = io.StringIO()
        yaml.dump({"models": {name: _kept(changes)}}, body)
        return f"{text.rstrip()}\n\n{body.getvalue()}".lstrip("\n") if text.strip() else body.getvalue()
    models = document.get("models")
    if models is None:
        models = document["models"] = CommentedMap()
    entry = models.get(name)
    if entry is None:
        models[name] = _kept(changes)
    else:
        for key, value in changes.items():
            if value is None:
                entry.pop(key, None)
            else:
                entry[key] = value
    out = io.StringIO()
    yaml.dump(document, out)
    return out.getvalue()


def _kept(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in changes.items() if value is not None}


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    target = path.resolve()  # a link stays one
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=target.parent, delete=False) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):
                os.chmod(file.name, target.stat().st_mode)
            os.replace(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise
