"""The engine's errors, with stable codes; engine/server/http/errors.py maps them to HTTP."""

from __future__ import annotations

from copy import copy
from typing import Any, Self


class EngineError(Exception):
    """Base class; the message is written for users."""

    code = "engine_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles say the same, whatever the class makes of its arguments."""
        return _restored, (type(self), self.args, vars(self))


def _restored(kind: type[EngineError], args: tuple[Any, ...], state: dict[str, Any]) -> EngineError:
    error = kind.__new__(kind, *args)
    vars(error).update(state)
    return error


class ConfigError(EngineError):
    """An invalid flag, or flags that contradict each other or the model."""

    code = "bad_arguments"


class CheckpointError(EngineError):
    """The model's directory lacks a file, or contains one that can't be read."""

    code = "bad_checkpoint"


class ModelNotFound(CheckpointError):
    """There is no directory and no cached or downloadable checkpoint with this name."""

    code = "model_not_found"


MAY_RUN_ON_VLLM = "vLLM may run it (`engine: vllm`)"


class UnsupportedModel(CheckpointError):
    """A kind of checkpoint, an architecture or a configuration feature that we don't implement."""

    code = "unsupported_model"

    def __init__(self, message: str, *, advice: str | None = MAY_RUN_ON_VLLM) -> None:
        """`advice`: what can run it; None if the message says so."""
        super().__init__(message if advice is None else f"{message.removesuffix('.')}: {advice}.")


class OutOfMemory(EngineError):
    """Weights or KV cache don't fit."""

    code = "out_of_memory"


class InvalidRequest(EngineError):
    """An invalid request; `param` names the field as the client wrote it."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    def renamed(self, message: str, param: str | None) -> Self:
        """The same error, with the field's name in the API that was called."""
        same = copy(self)
        same.message, same.args, same.param = message, (message,), param
        return same


class PromptTooLong(InvalidRequest):
    """A request doesn't fit into the context.

    Clients recognise it by its words: `message` has OpenAI's and vLLM's, `anthropic` also Anthropic's.
    """

    code = "context_length_exceeded"

    def __init__(self, message: str, *, param: str | None = None, anthropic: str | None = None) -> None:
        super().__init__(message, param=param)
        self._anthropic = anthropic

    @property
    def anthropic(self) -> str:
        return self.message if self._anthropic is None else f"{self._anthropic}. {self.message}"

    @classmethod
    def of(
        cls,
        limit: int,
        num_prompt_tokens: int,
        num_output_tokens: int,
        *,
        part: str,
        is_exact: bool = True,
        param: str | None = None,
    ) -> PromptTooLong:
        """`part`: the prompt's field, "messages"; not `is_exact`: the prompt has at least so many tokens.

        The error names the prompt's field unless `param` names another.
        """
        least = "" if is_exact else "at least "
        total = num_prompt_tokens + num_output_tokens
        too_much = part if param is None else f"{part} or {param}"
        # A prompt that fills the context exactly leaves no space for one token of an answer.
        most = limit - 1 if num_prompt_tokens == limit else limit
        return cls(
            f"This model's maximum context length is {limit} tokens. However, you requested {least}{total} "
            f"tokens ({least}{num_prompt_tokens} in the {part}, {num_output_tokens} in the completion). "
            f"Please reduce the length of the {too_much}.",
            param=part if param is None else param,
            anthropic=f"prompt is too long: {least}{num_prompt_tokens} tokens > {most} maximum",
        )


class RequestFailed(EngineError):
    """The model failed on this request, for a reason that its sender can't fix."""

    code = "request_failed"


class GenerationFailed(EngineError):
    """The engine ended a request with an error of its own."""

    code = "generation_failed"


class EngineDead(EngineError):
    """The engine's loop has ended; the process will exit."""

    code = "engine_dead"


class EngineAsleep(EngineError):
    """The engine has freed its memory and accepts no requests until it is woken up."""

    code = "engine_asleep"


class DeviceLost(EngineError):
    """Raised by a runner whose device is lost: no later step can work, so the engine must end."""

    code = "device_lost"
