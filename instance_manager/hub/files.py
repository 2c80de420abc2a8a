"""Selects the files of a repository that an engine needs. Pure: names in, names out.

Repositories often hold the same weights several times (other formats, checkpoints, the author's own layout);
an engine loads one of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from instance_manager.errors import InvalidSpec
from instance_manager.gguf.names import (
    GgufSet,
    default_of,
    is_projector,
    main_base,
    plain,
    projector_for,
    sets_of,
    split_tag,
    with_tag,
)

_SMALL = (
    ".json",
    ".jinja",
    ".txt",
    ".model",
    ".tiktoken",
    ".py",
)  # everything but weights
_TRAINING = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*|.*openvino.*)\.bin")
# sentence-transformers keeps a module's weights in a folder like "2_Dense".
_MODULE_FOLDER = re.compile(r"\d+_\w+")
_FOREIGN_FOLDER = re.compile(r"original|metal|onnx|openvino|coreml|gguf|checkpoint-\d+|runs|\..*")

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]*")
_MAX_ID_CHARS = 96  # the hub's own limit
_MAX_REVISION_CHARS = 200


def needed_files(names: Iterable[str]) -> list[str]:
    """The files to download, sorted: safetensors weights (*.bin only if there are none), and small files.

    Empty if there are no weights that an engine could load.
    """
    candidates = [name for name in names if not _is_in_foreign_folder(name)]
    weights = _weights(candidates)
    if not weights:
        return []
    return sorted({*weights, *(name for name in candidates if name.endswith(_SMALL))})


@dataclass(frozen=True, slots=True)
class GgufChoice:
    """The GGUF files of a repository that make up one model."""

    quantisation: str | None
    files: tuple[str, ...]  # the first is what an engine is given; last, the projector, if there is one


def gguf_models(repository: str, names: Iterable[str]) -> list[GgufSet]:
    """The quantisations of a repository's own model."""
    sets = sets_of(names)
    main = main_base(sets, repository, is_repository=True)
    return [] if main is None else [one for one in sets if plain(one.base) == plain(main)]


def gguf_choice(repository: str, names: Iterable[str], tag: str | None = None) -> GgufChoice | None:
    """The files to download of a quantisation, by default llama.cpp's choice; None if it doesn't exist."""
    names = list(names)
    sets = gguf_models(repository, names)
    chosen = default_of(sets) if tag is None else with_tag(sets, tag)
    if chosen is None or chosen.missing:
        return None
    projector = projector_for(chosen, filter(is_projector, names), sets_of(names))
    return GgufChoice(chosen.quantisation, (*chosen.files, *filter(None, (projector,))))


def check_hub_id(model: str) -> None:
    """Raise InvalidSpec unless `model` is a repository's name on the hub, with or without a quantisation."""
    repository, _ = split_tag(model)
    if (
        not _HUB_ID.fullmatch(repository)
        or len(repository) > _MAX_ID_CHARS
        or ".." in repository
        or "--" in repository
        or any(part.endswith((".", "-", ".git")) for part in repository.split("/"))
    ):
        raise InvalidSpec(
            f"model {_shortened(model)} isn't a valid model name on the hub; write `owner/name`, such as "
            f"Qwen/Qwen3-0.6B: at most {_MAX_ID_CHARS} letters, digits, '-', '_' and '.', no '..' or '--'; "
            "of GGUF files, `owner/name:Q4_K_M` names a quantisation",
            param="model",
        )


def check_revision(revision: str) -> None:
    """Raise InvalidSpec unless `revision` is a valid branch, tag or commit."""
    if not _REVISION.fullmatch(revision) or len(revision) > _MAX_REVISION_CHARS or ".." in revision:
        raise InvalidSpec(
            f"revision {_shortened(revision)} isn't a valid branch, tag or commit hash", param="revision"
        )


def _weights(names: list[str]) -> list[str]:
    loadable = [name for name in names if _may_hold_weights(PurePosixPath(name))]
    tensors = [name for name in loadable if name.endswith(".safetensors")]
    if tensors:
        # Mistral adds a second copy of the weights, named "consolidated".
        plain = [name for name in tensors if not PurePosixPath(name).name.startswith("consolidated")]
        return plain or tensors
    return [name for name in loadable if name.endswith(".bin") and not _TRAINING.fullmatch(name)]


def _may_hold_weights(path: PurePosixPath) -> bool:
    return len(path.parts) == 1 or (len(path.parts) == 2 and bool(_MODULE_FOLDER.fullmatch(path.parts[0])))


def _is_in_foreign_folder(name: str) -> bool:
    return any(_FOREIGN_FOLDER.fullmatch(part) for part in PurePosixPath(name).parts[:-1])


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:120] + "…")
