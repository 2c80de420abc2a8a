"""What can go wrong in the manager. Each error has a stable `code`; api/http/errors.py maps them to HTTP."""

from __future__ import annotations


class ManagerError(Exception):
    """Base of all; the message is written for the person who reads it, who may read an engine's log.

    `public` is the message for whoever may only send requests: it quotes no log, where secrets can stand.
    """

    code = "manager_error"
    is_lasting = False  # whether the same is to be said until somebody changes something

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        public: str | None = None,
    ) -> None:
        super().__init__(message)
        self.public = message if public is None else public
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InstanceNotFound(ManagerError):
    """No instance has this id."""

    code = "instance_not_found"


class InstanceExists(ManagerError):
    """An instance of this name exists already."""

    code = "instance_exists"


class IdempotencyKeyReused(ManagerError):
    """The key belongs to another request."""

    code = "idempotency_key_reused"


class InvalidSpec(ManagerError):
    """A field of the instance request is wrong; `param` names it."""

    code = "invalid_spec"
    is_lasting = True


class ModelNotFound(ManagerError):
    """The model named is neither a directory nor known anywhere we may look."""

    code = "model_not_found"
    is_lasting = True


class UnsupportedModel(ManagerError):
    """The model's files are here, and of a kind that its engine doesn't run."""

    code = "unsupported_model"
    is_lasting = True


class WrongState(ManagerError):
    """The instance is in a state that does not allow what was asked."""

    code = "wrong_state"


class WrongRunner(ManagerError):
    """The model is there, and its engines make something else of their input than the request needs."""

    code = "wrong_runner"


class InstanceNotRunning(ManagerError):
    """A request came for an instance that is stopped, stopping or failed and won't run by itself."""

    code = "instance_not_running"


class InstanceFailedToStart(ManagerError):
    """The engine a request waited for has failed; the message carries class and last log lines."""

    code = "instance_failed"


class StartTooSlow(ManagerError):
    """The wait for a starting instance ran out; the start itself goes on."""

    code = "instance_starting"


class SleepFailed(ManagerError):
    """The engine was asked to sleep and would not; it goes on serving."""

    code = "sleep_failed"


class InvalidCatalog(ManagerError):
    """models.yaml is wrong; the message says where and what."""

    code = "invalid_catalog"


class InvalidKeyFile(ManagerError):
    """The file of keys is wrong; the message says where and what, and shows no key."""

    code = "invalid_key_file"


class NoCapacity(ManagerError):
    """All ports or all places for instances are taken."""

    code = "no_capacity"


class NoSuchDevice(InvalidSpec):
    """A GPU was named that isn't there, or more were asked for than there are."""

    code = "no_such_device"


class QueueFull(ManagerError):
    """More requests wait for this instance than its queue holds."""

    code = "queue_full"


class OwnerUnreachable(ManagerError):
    """What is asked for belongs to another Berth, which can't be reached now."""

    code = "owner_away"


class ShuttingDown(ManagerError):
    """Berth is on its way out and takes nothing new."""

    code = "shutting_down"
