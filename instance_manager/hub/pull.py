"""Downloads of models: one child process per model and revision, for as long as it has a listener.

Knows nothing of HTTP, and of the hub only what the child reports.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

from instance_manager.errors import ManagerError, ShuttingDown
from instance_manager.gguf.names import split_tag
from instance_manager.hub.files import check_hub_id, check_revision
from instance_manager.hub.process import HubProcessDied, Line, hub_process

logger = logging.getLogger("berth.manager")

_Key = tuple[str, str | None]  # model and revision
Listener = Callable[[str, Line | ManagerError | None], None]  # model; outcome, None until then


class _LineBroadcast:
    """The newest line on each subject. Slow readers miss steps of progress, but never the outcome."""

    def __init__(self) -> None:
        self._newest: dict[str, tuple[int, Line]] = {}  # by subject, oldest first
        self._numbers = count()
        self._changed = asyncio.Event()
        self._outcome: Line | ManagerError | None = None

    @property
    def is_over(self) -> bool:
        return self._outcome is not None

    def post(self, line: Line) -> None:
        subject = f"file {line.get('file')}" if line.get("status") == "downloading" else "status"
        self._newest.pop(subject, None)
        self._newest[subject] = (next(self._numbers), line)
        self._wake()

    def close(self, outcome: Line | ManagerError) -> None:
        """Only the first outcome counts."""
        if self._outcome is None:
            self._outcome = outcome
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def progress(self) -> dict[str, dict[str, int]]:
        """Bytes `done` of `total` by file, of the files that have begun."""
        return {
            str(line["file"]): {"done": line["completed"], "total": line["total"]}
            for _, line in self._newest.values()
            if line.get("file") is not None
        }

    async def follow(self) -> AsyncGenerator[Line]:
        """The newest line of each subject, then changes, then the outcome, which may be raised."""
        seen = -1
        while True:
            changed = self._changed
            for number, line in [entry for entry in self._newest.values() if entry[0] > seen]:
                seen = number
                yield line
            if changed is self._changed:
                if self._outcome is not None:
                    break
                await changed.wait()
        if isinstance(self._outcome, ManagerError):
            raise self._outcome
        yield self._outcome


@dataclass(eq=False)
class _Download:
    """A running child process and its listeners."""

    key: _Key
    predecessor: asyncio.Task[None] | None  # with the same key, which is ending
    lines: _LineBroadcast = field(default_factory=_LineBroadcast)
    num_listeners: int = 0
    task: asyncio.Task[None] | None = None


class Pulls:
    """All downloads of this node. Use it inside `run()`."""

    def __init__(self, env: Mapping[str, str], on_downloaded: Callable[[str], None] = lambda _: None) -> None:
        """`env`: HF_HOME, HF_ENDPOINT, proxies …; `on_downloaded` is called with each downloaded model."""
        self._env = env
        self._on_downloaded = on_downloaded
        self._downloads: dict[_Key, _Download] = {}
        self._ending: dict[_Key, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._is_closed = False
        self._listeners: list[Listener] = []

    def add_listener(self, listener: Listener) -> None:
        """Call `listener` with the model whenever its download goes on, and with the outcome at its end."""
        self._listeners.append(listener)

    def progress(self) -> dict[str, dict[str, dict[str, int]]]:
        """Of each model that is being downloaded: bytes `done` of `total`, by file."""
        running = self._downloads.values()
        return {one.key[0]: one.lines.progress() for one in running if not one.lines.is_over}

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Owns the child processes: they are gone on exit."""
        error: BaseException | None = None
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                yield
            except BaseException as body_error:  # raised again below, so that no task group wraps it
                error = body_error
            self.close()
        if error is not None:
            raise error

    def close(self) -> None:
        """Refuse new downloads; end the running ones and notify their listeners. Downloaded data is kept."""
        self._is_closed = True
        for download in list(self._downloads.values()):
            download.lines.close(ShuttingDown("Berth is shutting down; pull again later to resume"))
            self._end(download)

    def check(self, model: str, revision: str | None = None) -> None:
        """Raise InvalidSpec for an invalid model or revision, and ShuttingDown."""
        check_hub_id(model)
        if revision is not None:
            check_revision(revision)
        if self._is_closed or self._tasks is None:
            raise ShuttingDown("Berth is shutting down and accepts no new downloads")

    def is_pulling(self, model: str) -> bool:
        """Whether any revision or quantisation of the model's repository is being downloaded."""
        repository, _ = split_tag(model)
        return any(split_tag(key[0])[0] == repository for key in (*self._downloads, *self._ending))

    async def follow(self, model: str, revision: str | None = None) -> AsyncGenerator[Line]:
        """The lines of the download, which starts with its first listener and ends with its last.

        The last line has `status` "success" or `error`. Raises as `check` does, HubProcessDied, and
        ShuttingDown if Berth ends meanwhile. A listener leaves by closing the generator (`aclosing`).
        """
        self.check(model, revision)
        download = self._join((model, revision))
        try:
            async for line in download.lines.follow():
                yield line
        finally:
            download.num_listeners -= 1
            if download.num_listeners == 0:
                self._end(download)

    def _join(self, key: _Key) -> _Download:
        download = self._downloads.get(key)
        if download is None or download.lines.is_over:
            assert self._tasks is not None  # noqa: S101 - ensured by `check`
            download = _Download(key, self._ending.get(key))
            self._downloads[key] = download
            download.task = self._tasks.create_task(self._run(download), name=f"pull of {key[0]}")
        download.num_listeners += 1
        return download

    def _end(self, download: _Download) -> None:
        """Without waiting. A new download with the same key starts after this one has ended."""
        if self._downloads.get(download.key) is download:
            del self._downloads[download.key]
        task = download.task
        if task is None or task.done() or self._ending.get(download.key) is task:
            return
        self._ending[download.key] = task
        task.add_done_callback(lambda _: self._forget_end(download.key, task))
        task.cancel()

    def _forget_end(self, key: _Key, task: asyncio.Task[None]) -> None:
        if self._ending.get(key) is task:
            del self._ending[key]

    async def _run(self, download: _Download) -> None:
        model, revision = download.key
        try:
            if download.predecessor is not None:
                await asyncio.wait((download.predecessor,))
            arguments = ("pull", model, *filter(None, (revision,)))
            async with hub_process(*arguments, env=self._env) as child:
                async for line in child.lines():
                    if "error" in line or line["status"] == "success":
                        outcome = line
                    else:
                        download.lines.post(line)
                        self._tell(model, None)
            self._conclude(download, outcome)
        except ManagerError as exc:
            self._conclude(download, exc)
        except Exception:  # the task's root: no listener may wait for ever
            logger.exception("the download of %s failed", model)
            self._conclude(download, HubProcessDied(f"the download of {model} failed; see Berth's log"))

    def _conclude(self, download: _Download, outcome: Line | ManagerError) -> None:
        if not isinstance(outcome, ManagerError) and "error" not in outcome:
            self._on_downloaded(download.key[0])
        download.lines.close(outcome)
        self._tell(download.key[0], outcome)

    def _tell(self, model: str, outcome: Line | ManagerError | None) -> None:
        for listener in self._listeners:
            listener(model, outcome)
