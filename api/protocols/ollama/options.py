"""`options` of a request: Ollama's names and types, as fields of OpenAI's body.

An option that would change the answer works or is refused by name. Clients send many defaults, so a value
without effect is accepted. So are options for loading a model, and those that nobody knows, with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from api.protocols.base import InvalidProtocolRequest
from api.protocols.ollama.served_models import ServedModel

_INTEGERS = frozenset(
    {
        *("num_predict", "num_ctx", "num_keep", "seed", "top_k", "repeat_last_n", "mirostat"),
        *("num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict"),
    }
)
_FLOATS = frozenset(
    {
        *("temperature", "top_p", "min_p", "typical_p", "tfs_z", "repeat_penalty"),
        *("presence_penalty", "frequency_penalty", "mirostat_tau", "mirostat_eta"),
    }
)
_BOOLEANS = frozenset(
    {
        *("penalize_newline", "numa", "low_vram", "f16_kv", "logits_all", "vocab_only"),
        *("use_mmap", "use_mlock", "embedding_only"),
    }
)
_SAME = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
)  # in OpenAI's or vLLM's body
_PENALTIES = ("repeat_penalty", "presence_penalty", "frequency_penalty")
_LLAMA_ONLY = ("typical_p", "mirostat", "mirostat_tau", "mirostat_eta", "repeat_penalty", "repeat_last_n")
_DEFAULT_WINDOW = 64  # `repeat_last_n` where a client doesn't set it
_WHOLE_TEXT = -1


def openai_fields(
    options: Mapping[str, Any] | None,
    model: ServedModel,
    served_context: Callable[[], int | None],
    ignored: dict[str, str],
) -> dict[str, Any]:
    """The fields for an engine. Options without effect that deserve a warning are added to `ignored`.

    `served_context`: the model's tokens of context, if known. Raises InvalidProtocolRequest.
    """
    given = _checked(options or {}, ignored)
    if "num_ctx" in given:
        _warn_of_context(given["num_ctx"], served_context(), ignored)
    fields = {name: given[name] for name in _SAME if name in given}
    if given.get("num_predict", 0) > 0:  # others: no limit
        fields["max_tokens"] = given["num_predict"]
    if given.get("seed", -1) != -1:
        fields["seed"] = given["seed"]
    if "top_k" in given:
        fields["top_k"] = max(given["top_k"], -1)
    if given.get("stop"):
        fields["stop"] = given["stop"]
    _check_unsupported(given, model)
    if model.takes_llama_fields:
        return fields | {name: given[name] for name in _LLAMA_ONLY if name in given}
    return _with_repetition(fields, given, ignored)


def _checked(options: Mapping[str, Any], ignored: dict[str, str]) -> dict[str, Any]:
    """The known options with values of the right types."""
    given: dict[str, Any] = {}
    for name, value in options.items():
        if value is None:
            continue
        if name in _INTEGERS:
            given[name] = _integer(name, value)
        elif name in _FLOATS:
            given[name] = value if _is_number(value) else _wrong_type(name, "number")
        elif name in _BOOLEANS:
            given[name] = value if isinstance(value, bool) else _wrong_type(name, "boolean")
        elif name == "stop":
            given[name] = _strings(name, value)
        else:
            ignored[f"options.{name}"] = "unknown option"
    return given


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _integer(name: str, value: Any) -> int:
    """Clients in which all numbers are floats write 64.0."""
    if not _is_number(value) or value != value // 1:
        _wrong_type(name, "integer")
    return int(value)


def _strings(name: str, value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
        _wrong_type(name, "array of strings")
    return values


def _wrong_type(name: str, kind: str) -> NoReturn:
    _refuse(name, f'option "{name}" must be of type {kind}')


def _refuse(name: str, message: str) -> NoReturn:
    raise InvalidProtocolRequest(message, param=f"options.{name}", status=400)


def _warn_of_context(wanted: int, served: int | None, ignored: dict[str, str]) -> None:
    """`num_ctx` is a wish: the context is fixed when a model is loaded, and a longer prompt is refused."""
    if served is not None and wanted > served:
        ignored["options.num_ctx"] = f"the model is served with {served} tokens of context"


def _check_unsupported(given: Mapping[str, Any], model: ServedModel) -> None:
    if given.get("tfs_z", 1) != 1:
        _refuse("tfs_z", "options.tfs_z: tail-free sampling is not supported; leave it out or send 1")
    if given.get("penalize_newline") is False and _has_penalty(given):
        _refuse(
            "penalize_newline",
            "options.penalize_newline: newlines can't be exempt from penalties; leave it out",
        )
    if model.takes_llama_fields:
        return
    if given.get("typical_p", 1) != 1:
        _refuse("typical_p", f"options.typical_p: {_NOT_HERE}; leave it out or send 1")
    if given.get("mirostat", 0) != 0:
        _refuse("mirostat", f"options.mirostat: {_NOT_HERE}; leave it out or send 0")


_NOT_HERE = "the model's engine does not support it"


def _has_penalty(given: Mapping[str, Any]) -> bool:
    return given.get("repeat_penalty", 1) != 1 or any(given.get(name, 0) for name in _PENALTIES[1:])


def _with_repetition(
    fields: dict[str, Any], given: Mapping[str, Any], ignored: dict[str, str]
) -> dict[str, Any]:
    """Penalties for an engine that applies them to the whole text."""
    window = given.get("repeat_last_n", _WHOLE_TEXT)
    if window == 0:  # no penalties at all
        return {name: value for name, value in fields.items() if name not in _PENALTIES}
    if "repeat_penalty" in given:
        fields["repetition_penalty"] = given["repeat_penalty"]
    if window != _WHOLE_TEXT and _has_penalty(given):
        if window != _DEFAULT_WINDOW:
            _refuse(
                "repeat_last_n",
                "options.repeat_last_n: the model's engine applies penalties to the whole text; "
                "leave it out, or send -1 (all) or 0 (no penalties)",
            )
        ignored["options.repeat_last_n"] = "penalties apply to the whole text"
    return fields
