"""Downloads a repository's files into the hub's cache, so that a broken download goes on where it broke.

The library's own downloader begins a file anew each time. So blobs are fetched here, by its `http_get`, into
`blobs/<etag>.incomplete` under the lock it uses itself; it then
finds them complete and lays out the snapshot.
Runs in the child that talks to the hub, never in Berth.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, get_session, hf_hub_url, try_to_load_from_cache
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # exported, though not in mypy's sense
    WeakFileLock,
    build_hf_headers,
)

from instance_manager.hub.errors import HubError

_REPORT_INTERVAL_S = 0.2
_CHUNK_BYTES = 1024 * 1024  # of what is read from the network at a time: steps of progress
_SHA256 = re.compile(r"[0-9a-f]{64}")

Report = Callable[[str | None, int, int], None]  # file or None for all, bytes here, bytes in all


class Progress:
    """Bytes per file and in all, told a few times a second by a thread of its own. A context.

    Not told by whoever brings the bytes: of a download that stalls, the last ones would never be heard of.
    """

    def __init__(self, sizes: Mapping[str, int], report: Report) -> None:
        self._sizes = sizes
        self._here = dict.fromkeys(sizes, 0)  # written by the threads that download, one file each
        self._told: dict[str | None, int] = {}
        self._report = report
        self._is_over = Event()
        self._thread = Thread(target=self._tell_until_over, name="progress")

    def put(self, name: str, completed: int) -> None:
        """So many bytes of a file are here."""
        self._here[name] = completed

    def __enter__(self) -> Progress:
        self._tell()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Tells how far it came."""
        self._is_over.set()
        self._thread.join()
        self._tell()

    def _tell_until_over(self) -> None:
        while not self._is_over.wait(_REPORT_INTERVAL_S):
            self._tell()

    def _tell(self) -> None:
        here = dict(self._here)
        for name, completed in here.items():
            self._tell_if_new(name, completed, self._sizes[name])
        self._tell_if_new(None, sum(here.values()), sum(self._sizes.values()))

    def _tell_if_new(self, name: str | None, completed: int, total: int) -> None:
        if self._told.get(name) != completed:
            self._told[name] = completed
            self._report(name, completed, total)


class _FileBar:
    """What `http_get` takes for a progress bar."""

    def __init__(self, progress: Progress, name: str, *, initial: int = 0, **_: Any) -> None:
        self._progress = progress
        self._name = name
        self._completed = initial
        progress.put(name, initial)

    def __enter__(self) -> _FileBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int) -> None:
        self._completed += count
        self._progress.put(self._name, self._completed)


class RemoteFile:
    """One file of a commit and the place of its blob in the cache. Asks the hub for ETag and size."""

    def __init__(self, model: str, name: str, commit: str) -> None:
        self.name = name
        self._url = hf_hub_url(model, name, revision=commit, endpoint=constants.ENDPOINT)
        metadata = get_hf_file_metadata(self._url, endpoint=constants.ENDPOINT, retry_on_errors=True)
        if metadata.etag is None or metadata.size is None:
            raise HubError(
                "upstream_error",
                "hub_failed",
                f"{constants.ENDPOINT} tells no ETag or no size of {model}/{name}; is it a hub?",
            )
        self.size = metadata.size
        self._etag = metadata.etag
        folder = repo_folder_name(repo_id=model, repo_type="model")
        self._blob = Path(constants.HF_HUB_CACHE, folder, "blobs", self._etag)
        self._partial = self._blob.with_name(f"{self._etag}.incomplete")
        # Where links can't be made, the snapshot holds the file itself and no blob remains.
        self._is_laid_out = isinstance(try_to_load_from_cache(model, name, revision=commit), str)
        self._lock = Path(constants.HF_HUB_CACHE, ".locks", folder, f"{self._etag}.lock")

    @property
    def bytes_here(self) -> int:
        """How much of it the cache holds already."""
        if self._is_here:
            return self.size
        return min(self.size, self._partial.stat().st_size) if self._partial.exists() else 0

    @property
    def _is_here(self) -> bool:
        return self._is_laid_out or self._blob.exists()

    @property
    def is_for_http(self) -> bool:
        """Larger ones the hub serves by its own protocol alone."""
        return self.size <= constants.MAX_HTTP_DOWNLOAD_SIZE

    def fetch(self, progress: Progress) -> None:
        """Bring the blob into the cache, going on with what is there. Raises HubError and the library's."""
        self._blob.parent.mkdir(parents=True, exist_ok=True)
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(self._lock):  # another process may be at it: an engine that downloads by itself
            if not self._is_here:
                self._complete(progress)
                self._partial.replace(self._blob)
        progress.put(self.name, self.size)

    def _complete(self, progress: Progress) -> None:
        resume_at = self._partial.stat().st_size if self._partial.exists() else 0
        if resume_at > self.size:
            self._partial.unlink()
            resume_at = 0
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # ranges are of the bytes as they are
        with self._partial.open("ab") as out:
            http_get(
                self._url,
                out,
                resume_size=resume_at,
                headers=headers,
                expected_size=self.size,
                displayed_filename=self.name,
                tqdm_class=partial(_FileBar, progress, self.name),  # type: ignore[arg-type]
            )
        if resume_at and not self._is_intact():
            self._partial.unlink()
            raise HubError(
                "upstream_error",
                "download_corrupt",
                f"{self.name}: what earlier downloads left doesn't fit the rest; it is deleted: pull again",
            )

    def _is_intact(self) -> bool:
        """Whether the bytes have the hash the ETag says; true where the ETag is none (small files)."""
        if not _SHA256.fullmatch(self._etag):
            return True
        with self._partial.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest() == self._etag


def prepare_library(timeout_s: float) -> None:
    """Small steps of progress, and a limit for answers of the hub that don't come."""
    constants.DOWNLOAD_CHUNK_SIZE = _CHUNK_BYTES
    get_session().timeout = timeout_s
