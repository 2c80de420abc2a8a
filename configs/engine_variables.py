"""Environment variables for engines and for OpenTelemetry's SDK, from `.env` and the settings."""

from __future__ import annotations

import os
from pathlib import Path

from configs.env_file import read_env_file
from configs.settings import NAMES, Settings


def sdk_environment(env_file: Path | None = None) -> dict[str, str]:
    """Variables for OpenTelemetry's SDK in `env_file`."""
    return read_env_file(env_file, NAMES).for_sdk()


def engine_variables(settings: Settings, env_file: Path | None = None) -> dict[str, str]:
    """Variables that engines get in addition to Berth's own environment."""
    environment = read_env_file(env_file, NAMES).for_engines(NAMES)
    for name in ("hf_endpoint", "hf_home", "http_proxy", "https_proxy"):
        if value := getattr(settings, name):
            environment[name.upper()] = value
    if settings.http_proxy or settings.https_proxy:
        # Engines talk to each other and to Berth over loopback, which must bypass the proxy.
        names = [name for name in os.environ if name.upper() == "NO_PROXY"]  # both spellings are read
        given = [environment.get("NO_PROXY"), *(os.environ[name] for name in names)]
        own = next(filter(None, given), None)
        no_proxy = ",".join(filter(None, [own, "127.0.0.1", "localhost"]))
        environment |= dict.fromkeys(["NO_PROXY", *names], no_proxy)
    return environment
