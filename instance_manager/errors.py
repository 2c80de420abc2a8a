"""The manager's errors. Each has a stable `code`; api/http/errors.py maps them to HTTP."""

from __future__ import annotations

import re

_QUOTED = re.compile(r"(['\"])~?/(?:[^'\"\n]*/)?([^'\"\n/]+/?\1)")  # an absolute path
# Unquoted, without spaces, and no route of a server.
_BARE = re.compile(
    r"(?<![\w.~/…>-])(?<!GET )(?<!POST )(?!//)(?:~[\w.-]*)?/(?:[^\s'\"`,;:()/]+/)*(?=[^\s'\"`,;:()/])"
)


def without_folders(text: str, *known: str) -> str:
    """Paths of this machine in `text` become their last names: `/srv/models/x` is `…/x`.

    `known`: paths that may be in it, and may have spaces.
    """
    for path in known:
        folder, slash, _ = path.rpartition("/")
        if folder and path.startswith(("/", "~")):
            text = text.replace(folder + slash, "…/")
    return _BARE.sub("…/", _QUOTED.sub(r"\1…/\2", text))


class ManagerError(Exception):
    """Base class. The message is for operators and may quote an engine's log.

    `public` is the message for clients that may only send requests: it quotes no log, which may hold secrets,
    and shows no folders of this machine.
    """

    code = "manager_error"
    is_lasting = False  # whether a retry fails in the same way until a client or operator changes something

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        public: str | None = None,
    ) -> None:
        super().__init__(message)
        self.public = without_folders(message) if public is None else public
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InstanceNotFound(ManagerError):
    """No instance has this id."""

    code = "instance_not_found"


class InstanceExists(ManagerError):
    """An instance of this name already exists."""

    code = "instance_exists"


class IdempotencyKeyReused(ManagerError):
    """The idempotency key belongs to another request."""

    code = "idempotency_key_reused"


class InvalidSpec(ManagerError):
    """A field of the instance request is invalid; `param` names it."""

    code = "invalid_spec"
    is_lasting = True


class ModelNotFound(ManagerError):
    """The model is neither a directory nor found in any configured place."""

    code = "model_not_found"
    is_lasting = True


class UnsupportedModel(ManagerError):
    """The model's files exist, but its engine doesn't support their architecture or format."""

    code = "unsupported_model"
    is_lasting = True


class WrongState(ManagerError):
    """The instance's state does not allow the requested action."""

    code = "wrong_state"


class WrongRunner(ManagerError):
    """The model exists, but its engines run another task than the request needs."""

    code = "wrong_runner"


class InstanceNotRunning(ManagerError):
    """A request for an instance that is stopped, stopping or failed and won't start by itself."""

    code = "instance_not_running"


class InstanceFailedToStart(ManagerError):
    """The engine that a request waited for has failed; the message has its class and last log lines."""

    code = "instance_failed"


class StartTooSlow(ManagerError):
    """The wait for a starting instance timed out; the start itself continues."""

    code = "instance_starting"


class SleepFailed(ManagerError):
    """The engine could not be put to sleep; it continues to serve."""

    code = "sleep_failed"


class InvalidCatalog(ManagerError):
    """models.yaml is invalid; the message says where and why."""

    code = "invalid_catalog"


class InvalidKeyFile(ManagerError):
    """The key file is invalid; the message says where and why, and shows no key."""

    code = "invalid_key_file"


class NoCapacity(ManagerError):
    """All ports or all instance slots are taken."""

    code = "no_capacity"


class NoSuchDevice(InvalidSpec):
    """A GPU was requested that doesn't exist, or more GPUs than exist."""

    code = "no_such_device"


class QueueFull(ManagerError):
    """The instance's request queue is full."""

    code = "queue_full"


class OwnerUnreachable(ManagerError):
    """The instance or model belongs to another node, which can't be reached now."""

    code = "owner_away"


class ShuttingDown(ManagerError):
    """Berth is shutting down and accepts no new requests."""

    code = "shutting_down"
