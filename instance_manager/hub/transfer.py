"""Downloads a repository's files into the hub's cache, resuming interrupted downloads.

The library's own downloader starts each file over. So blobs are fetched here, by its `http_get`, into
`blobs/<etag>.incomplete` under its own lock; it then finds them complete and lays out the snapshot. Runs in
the child process that talks to the hub, never in Berth.
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
_CHUNK_BYTES = 1024 * 1024  # read from the network at a time: the steps of progress
_SHA256 = re.compile(r"[0-9a-f]{64}")

Report = Callable[[str | None, int, int], None]  # file (None = all), bytes downloaded, bytes in total


class Progress:
    """Reports bytes per file and in total, a few times a second, from a thread of its own. A context manager.

    The downloading threads don't report: the last bytes before a stall would never be reported.
    """

    def __init__(self, sizes: Mapping[str, int], report: Report) -> None:
        self._sizes = sizes
        self._completed = dict.fromkeys(sizes, 0)  # written by the threads that download, one file each
        self._reported: dict[str | None, int] = {}
        self._report = report
        self._is_over = Event()
        self._thread = Thread(target=self._report_until_over, name="progress")

    def put(self, name: str, completed: int) -> None:
        """Set the number of downloaded bytes of a file."""
        self._completed[name] = completed

    def __enter__(self) -> Progress:
        self._report_all()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Reports the final numbers."""
        self._is_over.set()
        self._thread.join()
        self._report_all()

    def _report_until_over(self) -> None:
        while not self._is_over.wait(_REPORT_INTERVAL_S):
            self._report_all()

    def _report_all(self) -> None:
        completed_by_file = dict(self._completed)
        for name, completed in completed_by_file.items():
            self._report_if_new(name, completed, self._sizes[name])
        self._report_if_new(None, sum(completed_by_file.values()), sum(self._sizes.values()))

    def _report_if_new(self, name: str | None, completed: int, total: int) -> None:
        if self._reported.get(name) != completed:
            self._reported[name] = completed
            self._report(name, completed, total)


class _FileBar:
    """Stands in for the progress bar of `http_get`."""

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
    """One file of a commit and its blob's path in the cache. Gets ETag and size from the hub."""

    def __init__(self, model: str, name: str, commit: str) -> None:
        self.name = name
        self._url = hf_hub_url(model, name, revision=commit, endpoint=constants.ENDPOINT)
        metadata = get_hf_file_metadata(self._url, endpoint=constants.ENDPOINT, retry_on_errors=True)
        if metadata.etag is None or metadata.size is None:
            raise HubError(
                "upstream_error",
                "hub_failed",
                f"{constants.ENDPOINT} sent no ETag or size for {model}/{name}; is it a model hub?",
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
    def num_cached_bytes(self) -> int:
        """Bytes of the file that are in the cache already."""
        if self._is_cached:
            return self.size
        return min(self.size, self._partial.stat().st_size) if self._partial.exists() else 0

    @property
    def _is_cached(self) -> bool:
        return self._is_laid_out or self._blob.exists()

    @property
    def is_for_http(self) -> bool:
        """The hub serves larger files only by its own protocol."""
        return self.size <= constants.MAX_HTTP_DOWNLOAD_SIZE

    def fetch(self, progress: Progress) -> None:
        """Download the blob, resuming a partial one. Raises HubError and the library's errors."""
        self._blob.parent.mkdir(parents=True, exist_ok=True)
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(self._lock):  # another process may be downloading it, such as an engine
            if not self._is_cached:
                self._complete(progress)
                self._partial.replace(self._blob)
        progress.put(self.name, self.size)

    def _complete(self, progress: Progress) -> None:
        resume_at = self._partial.stat().st_size if self._partial.exists() else 0
        if resume_at > self.size:
            self._partial.unlink()
            resume_at = 0
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # ranges refer to the unencoded bytes
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
                f"{self.name}: the partial download doesn't match the rest and was deleted; pull again",
            )

    def _is_intact(self) -> bool:
        """Whether the bytes match the ETag's hash; true if the ETag isn't a hash (small files)."""
        if not _SHA256.fullmatch(self._etag):
            return True
        with self._partial.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest() == self._etag


def prepare_library(timeout_s: float) -> None:
    """Set small steps of progress and a time-out for the hub."""
    constants.DOWNLOAD_CHUNK_SIZE = _CHUNK_BYTES
    get_session().timeout = timeout_s
