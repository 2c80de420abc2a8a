"""Compiles kernels.cpp with the machine's own C++ compiler, once, and loads it.

Linux with GCC only: elsewhere PyTorch's own operators are used. The threads are PyTorch's: the library is
linked to the OpenMP runtime that PyTorch has loaded, as two runtimes would compete for the cores.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

SWITCH = "BERTH_NATIVE_KERNELS"  # environment: 0 = don't compile anything

_SOURCE = Path(__file__).with_name("kernels.cpp")
_HEADERS = sorted(_SOURCE.parent.glob("*.h"))
_TIMEOUT_S = 120.0
# Sums may be reordered, or nothing would be vectorised; infinities and NaN keep their meaning.
_ARITHMETIC = ("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math")


class CompilerError(Exception):
    """The kernels can't be compiled or used here; the message says why."""


@cache
def load_library() -> ctypes.CDLL | None:
    """The compiled kernels, or None if they are unavailable; the log says why.

    Call it after torch is imported. The first call on a machine takes a few seconds; later ones find the
    result in the user's cache.
    """
    try:
        return _load()
    except (CompilerError, OSError, subprocess.SubprocessError) as error:
        log.info("Computing with PyTorch's operators only: %s", error)
        return None


def _load() -> ctypes.CDLL:
    if os.environ.get(SWITCH) == "0":
        raise CompilerError(f"{SWITCH} is 0.")
    if sys.platform != "linux":
        raise CompilerError(f"kernels are compiled on Linux only, not on {sys.platform}.")
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        raise CompilerError("there is no g++ (set CXX to another GCC).")
    openmp = _loaded_openmp()
    sources = (path.read_bytes() for path in (_SOURCE, *_HEADERS))
    key = hashlib.sha256(b"\0".join((*sources, _machine(), openmp.encode(), compiler.encode())))
    library = _cache_directory() / f"kernels-{key.hexdigest()[:16]}.so"
    if not library.exists():
        started = time.perf_counter()
        _compile(compiler, openmp, library)
        log.info("Compiled the CPU's kernels in %.1f s.", time.perf_counter() - started)
    return ctypes.CDLL(str(library))


def _compile(compiler: str, openmp: str, library: Path) -> None:
    """Compile to a temporary file and rename it when complete: several engines may start at once."""
    machine = "-mcpu=native" if platform.machine() == "aarch64" else "-march=native"
    with tempfile.TemporaryDirectory(dir=library.parent) as directory:
        objects, linked = f"{directory}/kernels.o", f"{directory}/kernels.so"
        flags = ("-std=c++17", "-O3", machine, *_ARITHMETIC, "-fPIC", "-fopenmp")
        _run(compiler, *flags, "-c", str(_SOURCE), "-o", objects)
        # Without those flags: some would link start-up code that changes the whole process's arithmetic.
        _run(compiler, "-shared", objects, openmp, "-o", linked)
        os.replace(linked, library)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode:
        raise CompilerError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")


def _loaded_openmp() -> str:
    """The file of GCC's OpenMP runtime that PyTorch ships and has loaded."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.partition("/")[2]
        if "libgomp" in path:
            return f"/{path}"
    raise CompilerError("PyTorch doesn't use GCC's OpenMP here.")


def _machine() -> bytes:
    """The processor that the code is compiled for: different machines may share a home directory."""
    described = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    return "\n".join(
        line for line in described if line.startswith(("model name", "flags", "Features"))
    ).encode()


def _cache_directory() -> Path:
    """In the user's cache; a temporary one if that isn't writable, or is writable for others."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        directory = base / "berth"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
        if status.st_uid == os.geteuid() and not status.st_mode & 0o022 and os.access(directory, os.W_OK):
            return directory
    except (OSError, RuntimeError):  # RuntimeError: this user has no home directory
        pass
    return Path(tempfile.mkdtemp(prefix="berth-"))
