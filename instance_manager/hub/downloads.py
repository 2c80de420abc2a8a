"""Downloads that go on without a listener, as jobs: started, cancelled, and their state kept for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from secrets import token_hex

from instance_manager.errors import ManagerError
from instance_manager.hub.process import Line
from instance_manager.hub.pull import Pulls

_MAX_KEPT = 100  # jobs that have ended


class JobState(StrEnum):
    """The state of a download; the values are LM Studio's words."""

    DOWNLOADING = "downloading"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(slots=True)
class Job:
    """One download. Times are seconds since the epoch, sizes are bytes."""

    job_id: str
    model: str
    started_at: float = field(default_factory=time.time)
    state: JobState = JobState.DOWNLOADING
    done: int = 0
    total: int = 0
    ended_at: float | None = None
    error: str | None = None  # why it failed
    task: asyncio.Task[None] | None = None

    def note(self, line: Line) -> None:
        """Progress, or the outcome."""
        if line.get("status") == "downloading" and line.get("file") is None:
            self.done, self.total = line["completed"], line["total"]
        elif line.get("status") == "success":
            self.done = self.total = line["size_bytes"]
            self.end(JobState.COMPLETED)
        elif "error" in line:
            self.end(JobState.FAILED, str(line["error"]["message"]))

    def end(self, state: JobState, error: str | None = None) -> None:
        if self.ended_at is None:
            self.state, self.error, self.ended_at = state, error, time.time()


class Downloads:
    """Use it inside `run()`, which lies inside that of the pulls."""

    def __init__(self, pulls: Pulls, on_success: Callable[[], Awaitable[object]]) -> None:
        """`on_success` is awaited before a job counts as completed."""
        self._pulls = pulls
        self._on_success = on_success
        self.jobs: dict[str, Job] = {}  # by id, oldest first

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """On exit no job is left; data is kept, and another download resumes."""
        try:
            yield
        finally:
            tasks = [job.task for job in self.jobs.values() if job.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def start(self, model: str) -> Job:
        """A job that downloads the model; it may be running already. Raises InvalidSpec and ShuttingDown."""
        self._pulls.check(model)
        running = self.running(model)
        if running is not None:
            return running
        job = Job(f"job_{token_hex(5)}", model)
        self.jobs[job.job_id] = job
        self._forget_old()
        job.task = asyncio.create_task(self._run(job), name=f"download of {model}")
        return job

    def running(self, model: str) -> Job | None:
        running = (job for job in self.jobs.values() if job.state is JobState.DOWNLOADING)
        return next((job for job in running if job.model == model), None)

    def cancel(self, model: str) -> bool:
        """Whether a job was running. A pull that a client listens to goes on."""
        job = self.running(model)
        if job is None or job.task is None:
            return False
        job.task.cancel()
        job.end(JobState.FAILED, "it was cancelled")
        return True

    async def _run(self, job: Job) -> None:
        try:
            async with aclosing(self._pulls.follow(job.model)) as lines:
                async for line in lines:
                    if line.get("status") == "success":
                        await self._on_success()
                    job.note(line)
        except ManagerError as error:
            job.end(JobState.FAILED, str(error))
        finally:
            job.end(JobState.FAILED, "it was interrupted")

    def _forget_old(self) -> None:
        ended = [job for job in self.jobs.values() if job.ended_at is not None]
        for job in ended[: max(0, len(ended) - _MAX_KEPT)]:
            del self.jobs[job.job_id]
