"""What can go wrong in the engine. Stable codes; engine/server/errors.py maps them to HTTP."""

from __future__ import annotations


class EngineError(Exception):
    """Base of all; the message is written for the person who reads it."""

    code = "engine_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigError(EngineError):
    """A flag, or flags that don't fit each other or the model."""

    code = "bad_arguments"


class CheckpointError(EngineError):
    """The model's directory lacks something, or holds something that can't be read."""

    code = "bad_checkpoint"


class ModelNotFound(CheckpointError):
    """No directory and no cached or downloadable checkpoint of this name."""

    code = "model_not_found"


class UnsupportedModel(CheckpointError):
    """An architecture or a feature of its configuration that we don't implement."""

    code = "unsupported_model"


class OutOfMemory(EngineError):
    """Weights or KV cache don't fit."""

    code = "out_of_memory"


class InvalidRequest(EngineError):
    """A request is wrong; `param` names the field as the client wrote it."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class RequestFailed(EngineError):
    """The model failed on this request, through no fault that its sender could mend."""

    code = "request_failed"


class EngineDead(EngineError):
    """The engine's loop has ended; the process will exit."""

    code = "engine_dead"


class EngineAsleep(EngineError):
    """The engine has given back its memory and takes no requests until it is woken up."""

    code = "engine_asleep"


class DeviceLost(EngineError):
    """Raised by a runner whose device is lost: no later step can work, so the engine must end."""

    code = "device_lost"
