"""What goes wrong with the hub, in words that help. Runs in the child that talks to it, never in Berth."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

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
    """An error as the stream's last line tells it: OpenAI's type, a stable code, and what to do."""

    def __init__(self, error_type: str, code: str, message: str) -> None:
        super().__init__(message)
        self.type = error_type
        self.code = code
        self.message = message


def no_weights(model: str) -> HubError:
    """The repository has nothing that an engine could load."""
    return HubError(
        "invalid_request_error",
        "no_weights",
        f"{model} has neither *.safetensors nor *.bin at its top, so there is nothing an engine could load; "
        "pull a version of it that has (GGUF files belong to llama.cpp)",
    )


def disk_full(folder: str, needed: int, free: int) -> HubError:
    """What is left to download, in bytes, is more than the disk has."""
    return HubError(
        "insufficient_storage_error",
        "disk_full",
        f"{_gib(needed)} are left to download, but {folder} has {_gib(free)} free; "
        "make room there (`berth rm MODEL`), or set HF_HOME to a larger disk",
    )


def explained(exc: BaseException, model: str, revision: str | None) -> HubError | None:
    """The error behind an exception and its causes; None where it is none that we know."""
    for link in _chain(exc):
        found = _explain(link, model, revision)
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
    if isinstance(exc, httpx2.HTTPError):  # no answer at all
        return HubError(
            "upstream_error",
            "hub_unreachable",
            f"{constants.ENDPOINT} can't be reached ({type(exc).__name__}: {exc}); look at the network, "
            "HTTPS_PROXY and HF_ENDPOINT. What has been downloaded is kept: pull again to go on",
        )
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return HubError(
            "insufficient_storage_error",
            "disk_full",
            f"the disk of {constants.HF_HUB_CACHE} is full; make room and pull again: it goes on from here",
        )
    if isinstance(exc, OSError) and exc.errno is not None:
        what = f"{exc.filename}: " if exc.filename else ""
        message = f"the cache {constants.HF_HUB_CACHE} can't be used: {what}{os.strerror(exc.errno)}"
        return HubError("internal_error", "cache_unusable", message)
    return None


def _refused(exc: HfHubHTTPError, model: str, revision: str | None) -> HubError:
    """The hub has answered, and its answer is no."""
    status = exc.response.status_code
    if isinstance(exc, RevisionNotFoundError):
        message = f"{model} has no revision {revision!r}"
        return HubError("not_found_error", "revision_not_found", message)
    if isinstance(exc, GatedRepoError):
        return _gated(f"{model} is gated: accept its terms at {constants.ENDPOINT}/{model}")
    if isinstance(exc, RepositoryNotFoundError):
        message = f"there is no model {model!r} at {constants.ENDPOINT}"
        if status == 401:  # the hub doesn't tell strangers what exists
            message += ", or it is private: then set HF_TOKEN to a token that may read it"
        return HubError("not_found_error", "model_not_found", message)
    if status in (401, 403):
        return _gated(f"{constants.ENDPOINT} refuses {model} with {status}")
    if status == 404:
        message = f"{model}: {exc.request.url.path} is not at {constants.ENDPOINT}"
        return HubError("not_found_error", "model_not_found", message)
    message = f"{constants.ENDPOINT} answered {status} for {model}; pull again later: what is there is kept"
    return HubError("upstream_error", "hub_failed", message)


def _gated(what: str) -> HubError:
    has_token = "the token in use may not read it" if os.environ.get("HF_TOKEN") else "no HF_TOKEN is set"
    message = f"{what}; {has_token}: set HF_TOKEN to one that may, and restart Berth"
    return HubError("permission_error", "model_gated", message)


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
