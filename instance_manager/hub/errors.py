"""Errors of the hub, with advice. Runs in the child process that talks to the hub, never in Berth."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


class HubError(Exception):
    """An error as in the stream's last line: OpenAI's type, a stable code, and a message with advice."""

    def __init__(self, error_type: str, code: str, message: str) -> None:
        super().__init__(message)
        self.type = error_type
        self.code = code
        self.message = message


def no_weights(model: str) -> HubError:
    """The repository has no weights that an engine could load."""
    return HubError(
        "invalid_request_error",
        "no_weights",
        f"{model} has neither GGUF files nor *.safetensors or *.bin files at its top level, so an engine has "
        "nothing to load; pull a version that has them",
    )


def no_quantisation(repository: str, tag: str, existing: Sequence[str]) -> HubError:
    """The repository lacks this one. `existing`: those that it has, empty if it has no GGUF files."""
    if not existing:
        message = f"{repository} has no GGUF files, of which {tag} would be a quantisation: pull {repository}"
    else:
        message = f"{repository} has no quantisation {tag}; it has {', '.join(existing)}"
    return HubError("not_found_error", "quantization_not_found", message)


def disk_full(folder: str, needed: int, free: int) -> HubError:
    """The remaining download is larger than the free disk space; both in bytes."""
    return HubError(
        "insufficient_storage_error",
        "disk_full",
        f"{_gib(needed)} are left to download, but {folder} has {_gib(free)} free; "
        "free some space there (`berth rm MODEL`), or set HF_HOME to a larger disk",
    )


def explained(exc: BaseException, model: str, revision: str | None) -> HubError | None:
    """The error for an exception or one of its causes; None for an unknown one."""
    for cause in _chain(exc):
        found = _explain(cause, model, revision)
        if found is not None:
            return found
    return None


def _explain(exc: BaseException, model: str, revision: str | None) -> HubError | None:
    if isinstance(exc, HubError):
        return exc
    if isinstance(exc, OfflineModeIsEnabled):
        return HubError(
            "service_unavailable_error", "hub_offline", "HF_HUB_OFFLINE is set; unset it to download models"
        )
    if isinstance(exc, HfHubHTTPError):
        return _refused(exc, model, revision)
    if isinstance(exc, httpx2.HTTPError):  # no response at all
        return HubError(
            "upstream_error",
            "hub_unreachable",
            f"{constants.ENDPOINT} can't be reached ({type(exc).__name__}: {exc}); check the network, "
            "HTTPS_PROXY and HF_ENDPOINT. Downloaded data is kept: pull again to resume",
        )
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return HubError(
            "insufficient_storage_error",
            "disk_full",
            f"the disk of {constants.HF_HUB_CACHE} is full; free some space and pull again to resume",
        )
    if isinstance(exc, OSError) and exc.errno is not None:
        what = f"{exc.filename}: " if exc.filename else ""
        message = f"the cache {constants.HF_HUB_CACHE} can't be used: {what}{os.strerror(exc.errno)}"
        return HubError("internal_error", "cache_unusable", message)
    return None


def _refused(exc: HfHubHTTPError, model: str, revision: str | None) -> HubError:
    """The hub has refused the request."""
    status = exc.response.status_code
    if isinstance(exc, RevisionNotFoundError):
        message = f"{model} has no revision {revision!r}"
        return HubError("not_found_error", "revision_not_found", message)
    if isinstance(exc, GatedRepoError):
        return _gated(f"{model} is gated: accept its terms at {constants.ENDPOINT}/{model}")
    if isinstance(exc, RepositoryNotFoundError):
        message = f"there is no model {model!r} at {constants.ENDPOINT}"
        if status == 401:  # the hub doesn't reveal what exists
            message += ", or it is private: then set HF_TOKEN to a token that can read it"
        return HubError("not_found_error", "model_not_found", message)
    if status in (401, 403):
        return _gated(f"{constants.ENDPOINT} refused access to {model} with status {status}")
    if status == 404:
        message = f"{model}: {exc.request.url.path} is not at {constants.ENDPOINT}"
        return HubError("not_found_error", "model_not_found", message)
    message = f"{constants.ENDPOINT} answered {status} for {model}; pull again later to resume"
    return HubError("upstream_error", "hub_failed", message)


def _gated(what: str) -> HubError:
    has_token = "HF_TOKEN doesn't grant access to it" if os.environ.get("HF_TOKEN") else "no HF_TOKEN is set"
    message = f"{what}; {has_token}: set HF_TOKEN to a token with access, and restart Berth"
    return HubError("permission_error", "model_gated", message)


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
