"""Several ranks in this process, each in a thread: a whole divided engine, without the cost of processes.

    with ranks_in_threads():
        core = core_of(directory, tensor_parallel_size=2)

All that the real thing has runs but for processes, cores of their own and torch.distributed: messages pass
as pickled bytes, and each rank loads and runs its share.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from queue import SimpleQueue
from threading import Barrier, Thread
from typing import Any
from unittest.mock import patch

import torch

from engine.errors import DeviceLost, EngineError
from engine.execution.parallel.messages import Message, RankPlan, Run, Score, WakeUp
from engine.execution.parallel.rank import Rank
from tests.engine.parallel.thread_group import ThreadGroup

_START = "engine.execution.parallel.start"


@contextmanager
def ranks_in_threads() -> Iterator[None]:
    """Cores that are built meanwhile have ranks of this kind, also later; this thread keeps its CPUs."""
    with patch(f"{_START}.Ranks", ThreadRanks), patch(f"{_START}.divide_cores", lambda size: None):
        yield


@dataclass
class _RankThread:
    plan: RankPlan
    group: ThreadGroup
    messages: SimpleQueue[bytes | None]
    answers: SimpleQueue[tuple[bool, Any]]
    rank: Rank | None = None

    def live(self) -> None:
        """The thread's whole life, as engine/execution/parallel/worker.py's."""
        try:
            with patch("engine.execution.parallel.rank.RankGroup", lambda rank, size: self.group):
                rank = self.rank = Rank(self.plan)
            self.answers.put((True, None))
            while (data := self.messages.get()) is not None:
                message = ForkingPickler.loads(data)
                if isinstance(message, Run | Score):
                    rank.obey(message)
                    continue
                try:
                    self.answers.put((True, rank.obey(message)))
                except EngineError as error:
                    self.answers.put((False, error))
        except BaseException as error:  # as the end of a process
            self.group.abort()
            self.answers.put((False, error))


class ThreadRanks:
    """In place of engine.execution.parallel.processes.Ranks."""

    def __init__(self, plan: RankPlan, cores: Sequence[Set[int]] | None) -> None:
        tensors: list[torch.Tensor | None] = [None] * plan.size
        barrier = Barrier(plan.size, timeout=plan.step_timeout_s)
        self.size = plan.size
        self.group = ThreadGroup(0, tensors, barrier)
        self._threads = [
            _RankThread(
                replace(plan, rank=rank), ThreadGroup(rank, tensors, barrier), SimpleQueue(), SimpleQueue()
            )
            for rank in range(1, plan.size)
        ]
        self._loaded: list[tuple[bool, Any]] = []
        for one in self._threads:  # one after the other: transformers patches torch while it builds a model
            Thread(target=one.live, name=f"rank {one.plan.rank}", daemon=True).start()
            self._loaded.append(one.answers.get())
        self.close = weakref.finalize(self, _end, self._threads)

    def connect(self) -> None:
        for one, answer in zip(self._threads, self._loaded, strict=True):
            one.answers.put(answer)
        self.collect()

    def watch(self, on_lost: Any) -> None:
        """Threads don't end by themselves."""

    def check(self) -> None:
        """As `watch`."""

    def send(self, message: Message) -> None:
        data = ForkingPickler.dumps(message)
        for one in self._threads:
            one.messages.put(data)
            if isinstance(message, WakeUp):  # it may load, as above
                one.answers.put(one.answers.get())

    def call(self, message: Message) -> list[Any]:
        self.send(message)
        return self.collect()

    def read_adapter(self, key: bytes, name: str, directory: Path) -> None:
        ranks = [one.rank for one in self._threads if one.rank is not None]
        try:
            for rank in ranks:
                rank.read_adapter(key, name, directory)
        except EngineError:
            for rank in ranks:
                rank.drop_adapter(key)
            raise

    def collect(self) -> list[Any]:
        answers = [one.answers.get(timeout=60) for one in self._threads]
        for is_answer, value in answers:
            if not is_answer:
                raise value if isinstance(value, EngineError) else DeviceLost(f"{value!r}")
        return [value for _, value in answers]

    @contextmanager
    def translated_loss(self) -> Iterator[None]:
        try:
            yield
        except EngineError:
            raise
        except Exception as error:
            reasons = [one.answers.get_nowait()[1] for one in self._threads if not one.answers.empty()]
            raise DeviceLost(f"{error!r} {reasons}") from error


def _end(threads: Sequence[_RankThread]) -> None:
    for one in threads:
        one.messages.put(None)
