"""The checks that every instance spec must pass, and new instance ids. Pure."""

from __future__ import annotations

import math
import re
import secrets

from instance_manager.backends import backend_of
from instance_manager.errors import InvalidSpec
from instance_manager.process.environment import OWNED_ENV
from instance_manager.types import InstanceSpec

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PATH = re.compile(r"/[^\s\x00-\x1f\x7f]*")
_SLUG_LENGTH = 40


def check_spec(spec: InstanceSpec) -> None:
    """Raise InvalidSpec for a field that is invalid for any engine; the back end checks the rest."""
    if not spec.model_name or "\0" in spec.model_name:
        raise InvalidSpec("model_name is empty", param="model_name")
    # Clients that normalise URLs would drop "." and "..".
    if spec.name is not None and (not _NAME.fullmatch(spec.name) or spec.name in (".", "..")):
        raise InvalidSpec(
            f"name {spec.name!r} must be 1 to 64 letters, digits, '.', '_' or '-'", param="name"
        )
    if spec.timeout_s is not None:
        check_idle_timeout(spec.timeout_s)
    if spec.health_path is not None and not _PATH.fullmatch(spec.health_path):
        raise InvalidSpec(
            f"health_path {spec.health_path!r} must begin with '/' and must not contain spaces",
            param="health_path",
        )
    for device in spec.devices or ():
        if not isinstance(device, str) or not device or "," in device:
            raise InvalidSpec(f'devices must list device ids such as "0", not {device!r}', param="devices")
    owned = OWNED_ENV | {backend_of(spec.engine).api_key_variable}
    for key, value in spec.env.items():
        _check_variable(key, value, owned)


def check_idle_timeout(idle_timeout_s: float) -> None:
    """Raise InvalidSpec unless it is finite and not negative."""
    if not math.isfinite(idle_timeout_s) or idle_timeout_s < 0:
        raise InvalidSpec(f"timeout must be 0 (never) or more seconds, not {idle_timeout_s}", param="timeout")


def _check_variable(key: str, value: str, owned: frozenset[str]) -> None:
    if not key or "=" in key or "\0" in key or not isinstance(value, str) or "\0" in value:
        raise InvalidSpec(
            f"env: {key!r} must be a valid environment variable name with a string value", param=f"env.{key}"
        )
    if key in owned:
        raise InvalidSpec(f"env.{key} can't be set: Berth sets it for every engine", param=f"env.{key}")


def new_instance_id(model_name: str) -> str:
    """`<short model slug>-<6 hex digits>`; the caller checks that it is unused."""
    base = model_name.rstrip("/").rpartition("/")[2].lower()
    slug = re.sub(r"[^a-z0-9.]+", "-", base).strip("-.")[:_SLUG_LENGTH].strip("-.")
    return f"{slug or 'model'}-{secrets.token_hex(3)}"
