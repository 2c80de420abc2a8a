"""A LoRA adapter's adapter_config.json, as PEFT writes it: what is supported, the rest refused by name.

Knows nothing of torch.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.checkpoint.layout import PICKLED, check_whole, enumerate_names
from engine.checkpoint.raw_config import read_json
from engine.errors import CheckpointError, UnsupportedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ALL_LINEAR = "all-linear"

# What would change more than the linear layers' products, and its values that don't.
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "use_qalora": (None, False),
    "use_bdlora": (None, False),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
}
_HIGHEST = sys.float_info.max
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")  # ways to begin a training, of init_lora_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    rank: int
    alpha: float
    scales_by_root: bool = False  # rsLoRA
    target_modules: tuple[str, ...] | str = ALL_LINEAR  # names, or a regular expression
    names_all: bool = True  # whether all modules that target_modules matches are in the file
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path, *, max_rank: int) -> AdapterConfig:
        """Raises CheckpointError, and UnsupportedModel that names the field."""
        if not (directory / CONFIG).is_file():
            raise CheckpointError(f"{directory} has no {CONFIG}: it is not a LoRA adapter.")
        raw = read_json(directory / CONFIG)
        _refuse_unsupported(directory, raw)
        config = cls(
            rank=_number(directory, raw, "r", int),
            alpha=_number(directory, raw, "lora_alpha", (int, float)),
            scales_by_root=bool(raw.get("use_rslora")),
            target_modules=_targets(directory, raw),
            names_all=not (raw.get("layers_to_transform") or raw.get("exclude_modules")),
            rank_pattern=_pattern(directory, raw, "rank_pattern", int),
            alpha_pattern=_pattern(directory, raw, "alpha_pattern", (int, float)),
        )
        highest = max(config.rank, *config.rank_pattern.values(), 0)
        if highest > max_rank:
            raise UnsupportedModel(
                f"{directory}: its rank is {highest}, and --max-lora-rank is {max_rank}: raise it.",
                advice=None,
            )
        return config

    def targets(self, module: str) -> bool:
        """Whether target_modules names this module, by PEFT's rule."""
        if isinstance(self.target_modules, str):
            return self.target_modules == ALL_LINEAR or bool(re.fullmatch(self.target_modules, module))
        return any(module == name or module.endswith(f".{name}") for name in self.target_modules)

    def rank_of(self, module: str) -> int:
        return int(_of_pattern(self.rank_pattern, module, self.rank))

    def scaling_of(self, module: str) -> float:
        """What B A is multiplied by."""
        rank = self.rank_of(module)
        alpha = float(_of_pattern(self.alpha_pattern, module, self.alpha))
        return alpha / (math.sqrt(rank) if self.scales_by_root else rank)


def read_adapter(name: str, directory: Path, *, max_rank: int) -> AdapterConfig:
    """The configuration of an adapter whose files are whole, as far as can be seen without torch.

    Raises CheckpointError, and UnsupportedModel, naming what is unsupported.
    """
    try:
        if directory.is_file():
            raise CheckpointError(
                f"{str(directory)!r} is a file; the adapter {name!r} is the directory with its {CONFIG}."
            )
        if not directory.is_dir():
            raise CheckpointError(f"There is no directory {str(directory)!r} with the adapter {name!r}.")
        config = AdapterConfig.read(directory, max_rank=max_rank)
        if not (directory / WEIGHTS).is_file():
            raise _weightless(directory)
    except OSError as error:
        raise CheckpointError(f"The adapter {name!r} can't be read: {error}") from error
    check_whole(directory / WEIGHTS)
    return config


def _weightless(directory: Path) -> UnsupportedModel:
    pickled = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLED)
    found = (
        f", but pickled weights ({enumerate_names(pickled)}), which may run code when they are read"
        if pickled
        else ""
    )
    return UnsupportedModel(f"{directory} has no {WEIGHTS}{found}: save it in this format.", advice=None)


def _of_pattern(pattern: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first key that matches the end of the name."""
    return next((v for k, v in pattern.items() if re.fullmatch(rf"(?:.*\.)?(?:{k})", module)), default)


def _refuse_unsupported(directory: Path, raw: Mapping[str, Any]) -> None:
    if raw.get("peft_type") != "LORA":
        raise _unsupported(directory, "peft_type", raw.get("peft_type"))
    for name, neutral in _REFUSED.items():
        if raw.get(name) not in neutral:
            raise _unsupported(directory, name, raw[name])
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise _unsupported(directory, "init_lora_weights", start)


def _unsupported(directory: Path, name: str, value: Any) -> UnsupportedModel:
    shown = repr(value)[:100]
    return UnsupportedModel(
        f"{directory / CONFIG}: {name} {shown} is not supported: merge the adapter into its model.",
        advice=None,
    )


def _targets(directory: Path, raw: Mapping[str, Any]) -> tuple[str, ...] | str:
    targets = raw.get("target_modules") or ()
    if isinstance(targets, str):
        if targets != ALL_LINEAR:
            _check_expression(directory, "target_modules", targets)
        return targets
    if not isinstance(targets, list | tuple) or not all(isinstance(one, str) for one in targets):
        raise _wrong(directory, "target_modules", targets, "a list of names, or a regular expression")
    return tuple(targets)


def _pattern(directory: Path, raw: Mapping[str, Any], name: str, kind: Any) -> Mapping[str, Any]:
    pattern = raw.get(name) or {}
    if not isinstance(pattern, dict):
        raise _wrong(directory, name, pattern, "an object of numbers")
    for expression in pattern:
        _check_expression(directory, name, expression)
        _number(directory, pattern, expression, kind, within=name)
    return pattern


def _check_expression(directory: Path, name: str, expression: str) -> None:
    try:
        re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise _wrong(directory, name, expression, f"a regular expression, but {error}") from None


def _number(
    directory: Path, raw: Mapping[str, Any], name: str, kind: Any, *, within: str | None = None
) -> Any:
    value = raw.get(name)
    shown = name if within is None else f"{within}[{name!r}]"
    if not isinstance(value, kind) or isinstance(value, bool) or not 0 < value <= _HIGHEST:
        raise _wrong(directory, shown, value, "a number above 0")
    return value


def _wrong(directory: Path, name: str, value: Any, wanted: str) -> CheckpointError:
    return CheckpointError(f"{directory / CONFIG}: {name} is {repr(value)[:100]}; it must be {wanted}.")
