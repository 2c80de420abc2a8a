"""Which GGUF files llama-server loads for a model: weights, and a projector beside them. Reads names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instance_manager.backends.llama_cpp.header import read_header
from instance_manager.backends.model_paths import find_model
from instance_manager.errors import InvalidSpec, ModelNotFound
from instance_manager.memory.checkpoint_size import locate

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_QUANT = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_PREFERRED = ("Q4_K_M", "Q8_0")  # where none is named, as llama.cpp chooses
_MAX_PARTS = 10_000
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class LlamaFiles:
    """`weights`: the file, or the first of its parts; None: a hub id that it would download."""

    weights: Path | None
    hub_id: str = ""  # with the quantisation, `owner/name:Q4_K_M`
    projector: Path | None = None

    @property
    def all_parts(self) -> list[Path]:
        return [] if self.weights is None else parts_of(self.weights)


def find_files(
    model: str, params: Mapping[str, Any], model_dirs: Sequence[Path], environ: Mapping[str, str]
) -> LlamaFiles:
    """Of `model`: a file, a folder, a name under `model_dirs` or a hub id, the last two maybe with `:QUANT`.

    Raises ModelNotFound, and InvalidSpec for files of another format.
    """
    located, quant = _locate(model, params, model_dirs, environ)
    if located is None:
        return LlamaFiles(None, model)
    if located.is_file() and not quant:
        return LlamaFiles(located, projector=projector_beside(located))
    weights = _choose(located.parent if located.is_file() else located, quant, model)
    return LlamaFiles(weights, projector=projector_beside(weights))


def _locate(
    model: str, params: Mapping[str, Any], model_dirs: Sequence[Path], environ: Mapping[str, str]
) -> tuple[Path | None, str]:
    """Where it is, and the quantisation that is still to be found there. Raises ModelNotFound."""
    name, quant = split_quant(model)
    try:
        located = locate(find_model(model, model_dirs), environ, params.get("revision"))
    except ModelNotFound:
        if not quant:
            raise
        located = None
    if located is not None or not quant:
        return located, ""
    return locate(find_model(name, model_dirs), environ, params.get("revision")), quant


def split_quant(model: str) -> tuple[str, str]:
    """A name, and what its last colon separates from it: the quantisation; empty if there is none."""
    name, colon, quant = model.rpartition(":")
    is_quant = colon and name and _QUANT.fullmatch(quant) and not Path(model).exists()
    return (name, quant) if is_quant else (model, "")


def gguf_models(folder: Path) -> list[Path]:
    """The models in a folder, of those in parts the first; neither projectors nor what isn't complete."""
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")
    except OSError:
        return []
    found = [path for path in files if not is_projector(path)]
    return [path for path in found if (part := _PART.search(path.name)) is None or int(part[1]) == 1]


def problem_of_files(files: LlamaFiles) -> str | None:
    """Why llama.cpp couldn't load them, as far as their names and first bytes show. Blocks for a moment."""
    if files.weights is None:
        return None
    if missing := [part.name for part in files.all_parts if not part.is_file()]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return f"{files.weights.parent} lacks {missing[0]}{more}: its download isn't finished"
    return None if read_header(files.weights) else f"{files.weights} isn't a readable GGUF file"


def is_projector(path: Path) -> bool:
    """Whether it is a model's part that reads images or sound, by the name that converters give it."""
    return "mmproj" in path.name.lower()


def parts_of(path: Path) -> list[Path]:
    """All files of a model in parts, of which `path` is one."""
    match = _PART.search(path.name)
    if match is None or int(match[2]) > _MAX_PARTS:
        return [path]
    base = path.name[: match.start()]
    return [
        path.with_name(f"{base}-{number:05}-of-{match[2]}.gguf") for number in range(1, int(match[2]) + 1)
    ]


def projector_beside(weights: Path) -> Path | None:
    """The projector in the model's folder; None if there is none, or if it may belong to another model there.

    Of several precisions the one in 16 bits, as llama.cpp's own tools choose it.
    """
    try:
        found = sorted(path for path in weights.parent.glob("*.gguf") if is_projector(path))
    except OSError:
        return None
    bases = {_base(path) for path in gguf_models(weights.parent)}
    if len(bases) > 1:  # models of several kinds in one folder: only by the name
        found = [path for path in found if _base(weights) in path.name.lower()]
    return next((path for path in found if re.search(r"\bf16\b", path.stem, re.IGNORECASE)), None) or next(
        iter(found), None
    )


_TYPE = re.compile(
    r"[-._](?:UD-)?(?:I?Q\d\w*|TQ\d_\d|MXFP4\w*|NVFP4\w*|BF16|F16|F32|FP16|FP32)$", re.IGNORECASE
)


def _base(path: Path) -> str:
    """The name without the number of a part and the quantisation: the same for all files of one model."""
    stem = _PART.sub("", path.name)
    stem = stem.removesuffix(".gguf")
    return _TYPE.sub("", stem).lower()


def quant_of(path: Path) -> str:
    """The quantisation in a file's name, such as Q4_K_M; empty if it has none."""
    stem = _PART.sub("", path.name).removesuffix(".gguf")
    match = _TYPE.search(stem)
    return "" if match is None else match[0][1:]


def _choose(folder: Path, quant: str, model: str) -> Path:
    found = gguf_models(folder)
    if quant:
        found = [path for path in found if quant.lower() in (quant_of(path).lower(), path.stem.lower())]
        if not found:
            there = _listed(gguf_models(folder))
            raise ModelNotFound(
                f"model {model!r}: {folder} has no GGUF file of {quant}; it has {there}", param="model_name"
            )
    if not found:
        raise InvalidSpec(
            f"model {model!r}: llama.cpp runs GGUF files, and {folder} has none", param="model_name"
        )
    preferred = [path for path in found if quant_of(path).upper() in _PREFERRED]
    return min(preferred, key=lambda path: _PREFERRED.index(quant_of(path).upper()), default=found[0])


def _listed(files: Sequence[Path]) -> str:
    names = [quant_of(path) or path.name for path in files]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) + more) or "none"
