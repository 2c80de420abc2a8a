"""Edits models.yaml and leaves the rest of it, comments included, unchanged."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.catalog import Catalog, parse_catalog, read_text
from configs.catalog_error import CatalogError
from configs.engine_kinds import EngineKinds
from configs.yaml_document import YamlMistake, read_yaml
from configs.yaml_edit import rewrite

NEW_FILE = "# yaml-language-server: $schema=models.schema.json\n"


def edit_model(path: Path, name: str, changes: Mapping[str, Any], kinds: EngineKinds | None = None) -> None:
    """Change fields of a model's entry, or add the model; None removes a field. Blocks for milliseconds.

    `params` are merged: unnamed ones stay, None removes one.

    A new value replaces the whole old one; comments beside the rest are kept. The file changes atomically,
    and concurrent edits are serialised.

    Raises CatalogError if the file can't be read or written, or would become invalid; it is then unchanged.
    """
    try:
        with _exclusively(path):
            text = read_text(path)
            edited = edit_text(NEW_FILE if text is None else text, path, name, changes, kinds)
            if edited != text:
                _replace_file(path.resolve(), edited)  # a link stays a link
    except OSError as error:
        raise CatalogError(path, f"can't be written: {error.strerror or error}") from None


def edit_text(
    text: str, path: Path, name: str, changes: Mapping[str, Any], kinds: EngineKinds | None = None
) -> str:
    """The file's text after `edit_model`. Raises CatalogError."""
    parse_catalog(text, path, kinds)  # reports existing mistakes with their lines
    keys = ("models", name)
    try:
        fields = json.loads(json.dumps(dict(changes), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CatalogError(path, f"these changes can't be written as YAML: {error}", keys=keys) from None
    wanted = dict(read_yaml(text).data or {})
    wanted["models"] = models = dict(wanted.get("models") or {})
    entry = dict(models.get(name) or {})
    if fields.get("params"):
        fields["params"] = _merged(entry.get("params") or {}, fields["params"]) or None
    models[name] = _merged(entry, fields)
    try:
        edited = rewrite(text, wanted)
    except YamlMistake as error:
        raise CatalogError(path, error.problem, keys=keys) from None
    try:
        parse_catalog(edited, path, kinds)
    except CatalogError as error:
        raise error.without_line() from None
    return edited


def preview_edit(
    path: Path, name: str, changes: Mapping[str, Any], kinds: EngineKinds | None = None
) -> Catalog:
    """The catalog after `edit_model`, without writing it. Raises CatalogError."""
    text = read_text(path)
    edited = edit_text(NEW_FILE if text is None else text, path, name, changes, kinds)
    return parse_catalog(edited, path, kinds)


def _merged(have: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`have` with `changes` applied; None removes a key. Dashes and underscores are equivalent."""
    spelled = {key.replace("-", "_"): key for key in have}
    named = {spelled.get(key.replace("-", "_"), key): value for key, value in changes.items()}
    return {key: value for key, value in {**have, **named}.items() if key not in named or value is not None}


@contextlib.contextmanager
def _exclusively(path: Path) -> Iterator[None]:
    """One editor at a time, among threads and processes. Locks the folder, since the file is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.resolve().parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _replace_file(target: Path, text: str) -> None:
    """Replace a file's content atomically. Mode and owner are kept."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(descriptor, "wb") as file:
            with contextlib.suppress(FileNotFoundError):
                before = target.stat()
                with contextlib.suppress(PermissionError):  # only root may change the owner
                    os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
            file.write(text.encode())
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink()
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
