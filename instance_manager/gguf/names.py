"""What names of GGUF files say: parts of one model, its quantisation, what belongs beside it. Pure.

Names may have folders: repositories often have one for each quantisation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

SUFFIX = ".gguf"
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})", re.IGNORECASE)
# Q4_K_M, IQ2_XXS, TQ1_0, UD-Q4_K_XL …
_QUANTISATION = (
    r"(?:UD-)?(?:[IT]?Q\d{1,2}(?:_[0-9A-Z]+)*|MXFP4(?:_[0-9A-Z]+)*|NVFP4|BF16|FP?16|FP?32|FP8|INT[48])"
)
_TAG = re.compile(_QUANTISATION, re.IGNORECASE)
_IN_A_NAME = re.compile(rf"(?:^|(?<=[-._]))({_QUANTISATION})(?=[-.]|$)", re.IGNORECASE)
_MAX_PARTS = 10_000
_PROJECTOR = re.compile("mmproj", re.IGNORECASE)
# Drafts of a model's tokens, and data for quantising it: of use beside a model only.
_SIDECARS = ("imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
_SEPARATORS = "-._ "
_PREFERRED = ("Q4_K_M", "Q8_0")
_PREFERRED_PROJECTORS = ("F16", "BF16", "Q8_0", "F32")
_REPOSITORY_SUFFIX = re.compile(r"[-_.]?gguf$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class GgufSet:
    """The files of one model."""

    base: str  # the name without quantisation and number of a part
    quantisation: str | None  # in capitals; None: the name has none
    files: tuple[str, ...]  # in order; an engine is given the first
    missing: tuple[str, ...] = ()  # parts that the others' names tell of

    @property
    def folder(self) -> PurePosixPath:
        return PurePosixPath(self.files[0]).parent


def is_tag(text: str) -> bool:
    """Whether this is the name of a quantisation, as in `name:Q4_K_M`."""
    return _TAG.fullmatch(text) is not None


def split_tag(name: str) -> tuple[str, str | None]:
    """`owner/name:Q4_K_M` in two; no tag where the end isn't the name of a quantisation."""
    base, colon, tag = name.rpartition(":")
    return (base, tag) if colon and base and is_tag(tag) else (name, None)


def as_listed(name: str) -> str:
    """The name with its quantisation in capitals."""
    base, tag = split_tag(name)
    return name if tag is None else f"{base}:{tag.upper()}"


def is_projector(name: str) -> bool:
    """Whether the file turns images or sound into a model's embeddings (`mmproj-F16.gguf`)."""
    return name.endswith(SUFFIX) and _PROJECTOR.search(PurePosixPath(name).name) is not None


def may_be_model(name: str) -> bool:
    last = PurePosixPath(name).name
    is_sidecar = any(mark in last for mark in _SIDECARS)
    return name.endswith(SUFFIX) and not is_projector(name) and not is_sidecar


def sets_of(names: Iterable[str]) -> list[GgufSet]:
    """The models among these names, whole ones first, in the order of their names."""
    groups: dict[tuple[str, int], dict[int, str]] = {}
    for name in sorted(names, key=_by_depth):
        if may_be_model(name):
            stem, number, count = _part(name)
            groups.setdefault((stem, count), {}).setdefault(number, name)
    found = [_set(stem, count, parts) for (stem, count), parts in groups.items()]
    return sorted(found, key=lambda one: (bool(one.missing), *_by_depth(one.files[0])))


def main_base(sets: Sequence[GgufSet], label: str, *, is_repository: bool) -> str | None:
    """The base of those models that are called `label`; None: several have nothing to do with that name.

    `label`: of the folder or repository. In a repository, the first counts if none is called like it.
    """
    bases = {plain(one.base): one.base for one in reversed(sets)}
    if len(bases) == 1:
        return next(iter(bases.values()))
    wanted = plain(_without_suffix(label))
    found = bases.get(wanted) if wanted in bases else bases.get("")
    return sets[0].base if found is None and is_repository and sets else found


def default_of(sets: Iterable[GgufSet]) -> GgufSet | None:
    """The quantisation that a name without one stands for: as llama.cpp chooses."""
    among = list(sets)
    whole = [one for one in among if not one.missing] or among
    by_tag = {one.quantisation: one for one in reversed(whole)}
    return next((by_tag[tag] for tag in _PREFERRED if tag in by_tag), whole[0] if whole else None)


def with_tag(sets: Iterable[GgufSet], tag: str) -> GgufSet | None:
    """The one of this quantisation; `Q4_K_XL` stands for `UD-Q4_K_XL` where only that exists."""
    by_tag = {one.quantisation: one for one in reversed(list(sets))}
    return by_tag.get(tag.upper()) or by_tag.get(f"UD-{tag.upper()}")


def projector_for(model: GgufSet, projectors: Iterable[str], sets: Sequence[GgufSet]) -> str | None:
    """The projector that belongs to a model; `sets`: all models beside it."""
    is_alone = len({plain(one.base) for one in sets}) <= 1
    fitting = [name for name in projectors if _fits(name, model, is_alone=is_alone)]
    return min(fitting, key=lambda name: _rank(name, model), default=None)


def _fits(projector: str, model: GgufSet, *, is_alone: bool) -> bool:
    if not model.folder.is_relative_to(PurePosixPath(projector).parent):
        return False
    return is_alone or plain(_projector_base(projector)) in ("", plain(model.base))


def _rank(projector: str, model: GgufSet) -> tuple[int, bool, int, str]:
    """The lowest is best: nearest to the model, of its name, of the preferred type."""
    path = PurePosixPath(projector)
    tag = _tag_of(path.stem) or ""
    preference = [*_PREFERRED_PROJECTORS, tag].index(tag)
    return -len(path.parts), plain(_projector_base(projector)) != plain(model.base), preference, projector


def is_folder_of(name: str, label: str) -> bool:
    """Whether a folder of this name, within the one called `label`, has just one of its quantisations."""
    return _tag_of(name) is not None and plain(_base(name)) in ("", plain(_without_suffix(label)))


def plain(name: str) -> str:
    """Names that differ in case and punctuation only are the same."""
    return re.sub(r"[^0-9a-z]", "", name.casefold())


def _without_suffix(label: str) -> str:
    return _REPOSITORY_SUFFIX.sub("", PurePosixPath(label).name)


def _by_depth(name: str) -> tuple[int, str]:
    return name.count("/"), name


def missing_parts(name: str, is_there: Callable[[str], bool]) -> tuple[list[str], int]:
    """Of the model that a file is of: the parts that are missing, and how many parts it has."""
    stem, _, count = _part(name)
    if count == 1:
        return [], 1
    parts = [f"{stem}-{number:05}-of-{count:05}{SUFFIX}" for number in range(1, count + 1)]
    return [part for part in parts if not is_there(part)], count


def _part(name: str) -> tuple[str, int, int]:
    """The name without suffix and number, the number of the part, and how many there are."""
    stem = name.removesuffix(SUFFIX)
    match = _PART.fullmatch(stem)
    if match is None or not 1 <= int(match[2]) <= int(match[3]) <= _MAX_PARTS:
        return stem, 1, 1
    return match[1], int(match[2]), int(match[3])


def _set(stem: str, count: int, parts: dict[int, str]) -> GgufSet:
    name = PurePosixPath(stem).name
    names = [parts[number] for number in sorted(parts)]
    folder = PurePosixPath(names[0]).parent
    missing = tuple(
        str(folder / f"{name}-{number:05}-of-{count:05}{SUFFIX}")
        for number in range(1, count + 1)
        if number not in parts
    )
    tag = _tag_of(name) or (folder.name.upper() if is_tag(folder.name) else None)
    return GgufSet(_base(name), tag, tuple(names), missing)


def _tag_of(stem: str) -> str | None:
    found = _IN_A_NAME.findall(stem)
    return found[-1].upper() if found else None


def _base(stem: str) -> str:
    found = list(_IN_A_NAME.finditer(stem))
    if not found:
        return stem
    before, after = stem[: found[-1].start()], stem[found[-1].end() :]
    return f"{before.rstrip(_SEPARATORS)}{after.rstrip(_SEPARATORS)}"


def _projector_base(name: str) -> str:
    """Of which model a projector is; empty if its name doesn't say."""
    rest = _PROJECTOR.sub("", _base(PurePosixPath(name).stem)).strip(_SEPARATORS)
    return "" if rest.lower() == "model" else rest
