"""Measured memory of each model, kept across restarts: the best estimate of what it will need again.

Knows nothing of how memory is measured.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from instance_manager.memory.devices import HOST, Device

logger = logging.getLogger("berth.manager")

_FILE = "memory.json"
_FORMAT = 1
_MAX_ENTRIES = 500  # of models with their parameters; those measured longest ago are dropped
_MAX_RUNS = 16  # many, since models that take turns end before they reach their peak


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of an instance on the host, and on each of its GPUs (the fullest counts)."""

    host_bytes: int
    gpu_bytes_each: int = 0

    @classmethod
    def of(cls, held: Mapping[Device, int]) -> Footprint:
        gpus = [num_bytes for device, num_bytes in held.items() if device != HOST]
        return cls(held.get(HOST, 0), max(gpus, default=0))

    def on(self, gpu_uuids: Iterable[str]) -> dict[Device, int]:
        """As bytes per device, for `plan_capacity`."""
        return {HOST: self.host_bytes} | dict.fromkeys(gpu_uuids, self.gpu_bytes_each)

    def peak(self, other: Footprint) -> Footprint:
        return Footprint(
            max(self.host_bytes, other.host_bytes), max(self.gpu_bytes_each, other.gpu_bytes_each)
        )


@dataclass(frozen=True, slots=True)
class MeasuredKind:
    """Instances with equal needs: one model, one engine, one set of parameters."""

    model: str
    engine: str
    fingerprint: str

    def __str__(self) -> str:
        return json.dumps([self.model, self.engine, self.fingerprint])


def params_fingerprint(params: Mapping[str, Any], num_gpus: int) -> str:
    """Equal for equal merged parameters in any order, on the same number of GPUs."""
    text = json.dumps([params, num_gpus], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_Runs = dict[str, dict[int, Footprint]]  # run -> level -> peak


class Measurements:
    """Peaks by kind, run and sleep level. `save` writes them to `directory`/memory.json.

    Thread-safe.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / _FILE
        self._peaks: dict[str, _Runs] = _read(self._path)  # by kind
        self._is_saved = True
        self._lock = threading.Lock()

    def record(self, kind: MeasuredKind, run: str, level: int, footprint: Footprint) -> None:
        """Record what an instance holds at a level (0 = awake). `run` identifies one process of it."""
        with self._lock:
            runs = self._peaks[str(kind)] = self._peaks.pop(str(kind), {})  # measured last comes last
            levels = runs.setdefault(run, {})
            peak = footprint.peak(levels.get(level, footprint))
            if levels.get(level) != peak:
                levels[level] = peak
                self._is_saved = False
            for oldest in list(runs)[:-_MAX_RUNS]:
                del runs[oldest]

    def peak(self, kind: MeasuredKind, level: int = 0) -> Footprint | None:
        """The most that recent runs held at a level; None if that was never measured."""
        with self._lock:
            runs = self._peaks.get(str(kind), {})
            found = [levels[level] for levels in runs.values() if level in levels]
        return reduce(Footprint.peak, found) if found else None

    def save(self) -> None:
        """Write changes since the last call, atomically. Raises OSError."""
        with self._lock:
            if self._is_saved:
                return
            self._peaks = dict(list(self._peaks.items())[-_MAX_ENTRIES:])
            data = {kind: _as_json(runs) for kind, runs in self._peaks.items()}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(f".{os.getpid()}.new")
            temporary.write_text(json.dumps({"format": _FORMAT, "peaks": data}, indent=1))
            temporary.replace(self._path)
            self._is_saved = True


def _as_json(runs: _Runs) -> dict[str, dict[str, list[int]]]:
    return {
        run: {str(level): [f.host_bytes, f.gpu_bytes_each] for level, f in levels.items()}
        for run, levels in runs.items()
    }


def _read(path: Path) -> dict[str, _Runs]:
    """Empty for a missing or unreadable file: then everything is measured anew."""
    try:
        data = json.loads(path.read_text())
        if data["format"] != _FORMAT:
            raise ValueError(f"format {data['format']!r}, not {_FORMAT}")
        return {
            kind: {
                run: {int(level): Footprint(int(host), int(gpu)) for level, (host, gpu) in levels.items()}
                for run, levels in runs.items()
            }
            for kind, runs in data["peaks"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s can't be read (%s): memory is estimated until it is measured again", path, error)
        return {}
