"""A GGUF file as a directory in Hugging Face layout, whose weights stay in the file. Knows nothing of torch.

The directory, in the user's cache, has config.json and the tokenizer's files, made from the file's metadata,
and the paths of the files with its weights. So all that reads a checkpoint reads this one, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.checkpoint.gguf_config import config_of
from engine.checkpoint.gguf_fields import Fields
from engine.checkpoint.gguf_file import GGUFFile, read_gguf, split_files
from engine.checkpoint.layout import unpacked_record
from engine.checkpoint.quantisation import UNPACKED_GGUF
from engine.errors import CheckpointError, ConfigError

_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_POOLING_MODES = {1: "mean_tokens", 2: "cls_token", 3: "lasttoken"}  # by llama.cpp's numbers


def as_directory(path: Path, *, load_format: str = "auto", has_tokenizer: bool = False) -> Path:
    """`path` itself if it is a directory in Hugging Face layout, else one made of a GGUF file's metadata.

    It may be a directory with one GGUF model, too; beside a config.json only if `load_format`, which is
    --load-format, is "gguf". `has_tokenizer`: the tokenizer comes from elsewhere. Raises ConfigError,
    CheckpointError, UnsupportedModel.
    """
    if path.is_dir() and not (path / UNPACKED_GGUF).exists():
        if load_format == "gguf":
            path = _only_model(path)
        elif (
            load_format == "auto" and not (path / "config.json").exists() and len(found := _models(path)) == 1
        ):
            path = next(iter(found.values()))
    if path.suffix != ".gguf" or path.is_dir():
        return path
    if load_format not in ("auto", "gguf"):
        raise ConfigError(f"--load-format {load_format} contradicts --model {path}, which is a GGUF file.")
    paths = [part.absolute() for part in split_files(path)]
    try:
        directory = _cache() / _key(paths, has_tokenizer=has_tokenizer)
        if not directory.is_dir():
            _unpack(paths, directory, has_tokenizer=has_tokenizer)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        raise CheckpointError(
            f"{path} can't be unpacked into the cache: {error}. XDG_CACHE_HOME names another place."
        ) from error
    return directory


def _models(directory: Path) -> dict[str, Path]:
    """The first file of each, by name. Projectors of images, which lie beside their models, are left out."""
    paths = sorted(directory.glob("*.gguf"), reverse=True)
    return {_PART.sub(".gguf", path.name): path for path in paths if not path.name.startswith("mmproj")}


def _only_model(directory: Path) -> Path:
    models = _models(directory)
    if len(models) != 1:
        found = "none" if not models else ", ".join(sorted(models))
        raise ConfigError(f"--load-format gguf needs one GGUF model in {directory}, which has {found}.")
    return next(iter(models.values()))


def _key(paths: Sequence[Path], *, has_tokenizer: bool) -> str:
    """Changes with the files and with the code that reads them."""
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    key = hashlib.sha256(repr((states, has_tokenizer)).encode())
    for module in ("engine.checkpoint.gguf_config", "engine.text.gguf_tokenizer"):
        spec = find_spec(module)
        for source in sorted(Path(str(spec and spec.origin)).parent.glob("gguf_*.py")):
            key.update(source.read_bytes())
    return f"{_PART.sub('.gguf', paths[0].name).removesuffix('.gguf')}-{key.hexdigest()[:16]}"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "berth" / "gguf"


def _unpack(paths: Sequence[Path], directory: Path, *, has_tokenizer: bool) -> None:
    file = read_gguf(paths[0])
    contents = {
        UNPACKED_GGUF: unpacked_record(paths),  # first: a change from here on is noticed
        "config.json": config_of(file),
        **_pooling_files(file),
    }
    if not has_tokenizer:
        contents |= _tokenizer_files(file)
    directory.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=directory.parent))
    try:
        for name, content in contents.items():
            (new / name).parent.mkdir(exist_ok=True)
            (new / name).write_text(content if isinstance(content, str) else json.dumps(content, indent=2))
        new.chmod(0o755)
        new.rename(directory)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        if not directory.is_dir():  # else another process was faster
            raise


def _pooling_files(file: GGUFFile) -> dict[str, Any]:
    """sentence-transformers' files, if the file is of an embedding model."""
    kind = Fields(file).optional("pooling_type")
    mode = _POOLING_MODES.get(kind) if isinstance(kind, int) else None
    if mode is None:
        return {}
    steps = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    modules = [{"path": path, "type": f"sentence_transformers.models.{step}"} for step, path in steps]
    return {"modules.json": modules, "1_Pooling/config.json": {f"pooling_mode_{mode}": True}}


def _tokenizer_files(file: GGUFFile) -> dict[str, Any]:
    from engine.text.gguf_tokenizer import gguf_tokenizer  # its library takes a moment to import

    tokenizer = gguf_tokenizer(file.path, file.metadata)
    templates = [{"name": name, "template": text} for name, text in tokenizer.chat_templates.items()]
    config: dict[str, Any] = {**tokenizer.special_tokens, "tokenizer_class": "PreTrainedTokenizerFast"}
    if templates:
        config["chat_template"] = templates
    return {"tokenizer.json": tokenizer.fast.to_str(), "tokenizer_config.json": config}
