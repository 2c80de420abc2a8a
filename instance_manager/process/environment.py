"""The environment of an engine or another child process. Pure: the base environment is a parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from instance_manager.process.hub_cache import with_absolute_cache_paths

# Berth's own settings: secrets that engines must not see, and names that vLLM would warn about or misread.
_WITHHELD = frozenset(
    {
        "API_KEYS",
        "ADMIN_API_KEYS",
        "API_KEYS_FILE",
        "STATE_URL",
        "OTEL_SERVICE_NAME",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
        "OTEL_EXPORTER_OTLP_LOGS_HEADERS",
        "VLLM_API_KEY",
        "VLLM_BASE_PORT",
        "VLLM_MAX_INSTANCES",
        "VLLM_CONFIG",
        "VLLM_PYTHON",
        "VLLM_COMMAND",
        "VLLM_PORT",  # a fixed internal port would collide between instances
    }
)
_WITHHELD_PREFIX = "VLLM_DEFAULT_"
OWNED_ENV = frozenset({"VLLM_API_KEY", "BERTH_INSTANCE_ID", "BERTH_INSTANCE_TOKEN"})


def child_environment(base: Mapping[str, str], *layers: Mapping[str, str]) -> dict[str, str]:
    """Berth's environment without its own settings, then the layers in order; for any child process."""
    env = {k: v for k, v in base.items() if k not in _WITHHELD and not k.startswith(_WITHHELD_PREFIX)}
    env["PYTHONUNBUFFERED"] = "1"
    for layer in layers:
        env.update(layer)
    return with_absolute_cache_paths(env)


def engine_environment(
    base: Mapping[str, str],
    *layers: Mapping[str, str],
    instance_id: str,
    token: str,
    api_key: str,
    devices: Sequence[str] | None,
    api_key_variable: str = "VLLM_API_KEY",
) -> dict[str, str]:
    """A child's environment, then the variables that Berth sets."""
    env = child_environment(base, *layers)
    if devices is not None:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    env[api_key_variable] = api_key
    env["BERTH_INSTANCE_ID"] = instance_id
    env["BERTH_INSTANCE_TOKEN"] = token
    # Otherwise setproctitle, which vLLM uses, overwrites the environment that other processes can read.
    env.setdefault("SPT_NOENV", "1")
    return env
