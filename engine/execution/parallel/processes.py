"""The processes of ranks 1, 2, … as rank 0 sees them: started, told what to do, watched, ended.

They belong to the engine's process group and session. Each ends when its standard input does, which only
rank 0 holds: none outlives it, however it ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from engine.core.own_process import only_here
from engine.errors import DeviceLost, EngineError
from engine.execution.parallel.group import RankGroup
from engine.execution.parallel.messages import AdapterMessage, Connect, Message, RankPlan

_MODULE = "engine.execution.parallel.worker"
_EXIT_WAIT_S = 2.0  # a collective operation may notice an end before the operating system reports it


class _Rank:
    """One process and the connection to it."""

    def __init__(self, plan: RankPlan, cores: Set[int] | None) -> None:
        self.rank = plan.rank
        (ours, theirs), (our_adapters, their_adapters) = socket.socketpair(), socket.socketpair()
        path = os.pathsep.join(filter(None, (str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH"))))
        words = [] if cores is None else [",".join(map(str, sorted(cores)))]
        with theirs, their_adapters:
            numbers = [theirs.fileno(), their_adapters.fileno()]
            self.process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, *map(str, numbers), *words],
                stdin=subprocess.PIPE,
                pass_fds=numbers,
                env={**os.environ, "PYTHONPATH": path},
            )
        self.connection = Connection(ours.detach())
        self.adapters = Connection(our_adapters.detach())
        self.connection.send(plan)

    def receive(self) -> Any:
        """The answer to a message. Raises the rank's EngineError; EOFError or OSError if it has ended."""
        return _answer_of(self.connection)

    def ask_of_adapter(self, message: AdapterMessage) -> None:
        """Raises as `receive`."""
        self.adapters.send(message)
        _answer_of(self.adapters)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.connection, self.adapters, self.process.stdin):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def _answer_of(connection: Connection) -> Any:
    is_answer, value = connection.recv()
    if not is_answer:
        raise value
    return value


class _Watch:
    """Notices that a rank has ended, then ends the others: whoever waits for one of them fails at once."""

    def __init__(self, ranks: Sequence[_Rank]) -> None:
        self.is_closing = False
        self.has_ended = Event()
        self.ended: _Rank | None = None  # the first
        self.on_lost: Callable[[], None] | None = None
        self._ranks = ranks
        self._lock = Lock()
        for rank in ranks:
            Thread(target=self._wait, args=(rank,), name=f"rank {rank.rank}", daemon=True).start()

    def _wait(self, rank: _Rank) -> None:
        """A thread's whole life."""
        rank.process.wait()
        with self._lock:
            if self.is_closing or self.ended is not None:
                return
            self.ended = rank
        for other in self._ranks:
            other.process.kill()
        self.has_ended.set()
        if self.on_lost is not None:
            self.on_lost()


class Ranks:
    """All ranks but this one, 0. Called from one thread, but for `read_adapter`."""

    def __init__(self, plan: RankPlan, cores: Sequence[Set[int]] | None) -> None:
        """Starts them; they load their weights. `plan` is rank 0's; `cores` by rank, None = all of them."""
        folder = Path(tempfile.mkdtemp(prefix="berth-ranks-"))
        self._plan = replace(plan, rendezvous=folder / "rendezvous")
        self._ranks = [
            _Rank(replace(self._plan, rank=rank), None if cores is None else cores[rank])
            for rank in range(1, plan.size)
        ]
        self._watch = _Watch(self._ranks)
        self._adapters_turn = Lock()
        self._loss: DeviceLost | None = None  # that this thread has met
        self.size = plan.size
        self.group = RankGroup(0, plan.size)
        self.close = weakref.finalize(self, only_here(_end), self._ranks, self._watch, folder)

    def connect(self) -> None:
        """Once this rank's weights are loaded. Raises what loading raises on another rank, and DeviceLost."""
        self.collect()  # each tells that it has loaded
        self.send(Connect())
        with self.translated_loss():
            self.group.connect(self._plan.rendezvous, self._plan.device, timeout_s=self._plan.step_timeout_s)
        self.collect()
        if self._plan.device.type == "cpu":  # gloo has met; NCCL looks at its file again
            shutil.rmtree(self._plan.rendezvous.parent, ignore_errors=True)

    def watch(self, on_lost: Callable[[], None]) -> None:
        """Call `on_lost`, from another thread, when a rank has ended; `check` then tells of it."""
        self._watch.on_lost = on_lost
        if self._watch.has_ended.is_set():
            on_lost()

    def check(self) -> None:
        """Raises DeviceLost if a rank has ended, or another call has raised it."""
        if self._loss is not None:
            raise self._loss
        if self._watch.has_ended.is_set():
            raise self.lost(None)

    def send(self, message: Message) -> None:
        """Raises DeviceLost."""
        data = ForkingPickler.dumps(message)
        with self.translated_loss():
            for rank in self._ranks:
                rank.connection.send_bytes(data)

    def call(self, message: Message) -> list[Any]:
        """Send it and collect the answers."""
        self.send(message)
        return self.collect()

    def collect(self) -> list[Any]:
        """The answers to the last message, by rank. Raises the first EngineError of them, and DeviceLost."""
        answers, errors = [], []
        for rank in self._ranks:
            try:
                with self.translated_loss():
                    answers.append(rank.receive())
            except DeviceLost:
                raise
            except EngineError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return answers

    def read_adapter(self, key: bytes, name: str, directory: Path) -> None:
        """Each holds its share of it, or none does. Safe in any thread. Raises EngineError and DeviceLost."""
        with self._adapters_turn:
            try:
                for rank in self._ranks:
                    rank.ask_of_adapter(AdapterMessage(key, name, directory))
            except EngineError:
                for rank in self._ranks:
                    with suppress(EOFError, OSError, EngineError):
                        rank.ask_of_adapter(AdapterMessage(key))
                raise
            except (EOFError, OSError) as error:  # the engine's thread will say more
                raise DeviceLost(f"A rank has ended while it read the adapter {name!r}.") from error

    @contextmanager
    def translated_loss(self) -> Iterator[None]:
        """After an error inside the ranks are no longer in step: raises DeviceLost. EngineErrors pass."""
        try:
            yield
        except EngineError:
            raise
        except Exception as error:  # of a connection, of torch.distributed, of the model
            raise self.lost(error) from error

    def lost(self, error: BaseException | None) -> DeviceLost:
        """Ends all ranks. `error`: what failed on rank 0, most likely because another one has ended."""
        self._watch.has_ended.wait(_EXIT_WAIT_S)
        ended = self._watch.ended
        reason = (
            f"A step failed on rank 0 of {self.size}, and the ranks can't continue apart: {error} (one that "
            f"doesn't answer for {self._plan.step_timeout_s:.0f} s counts as lost)."
            if ended is None
            else f"Rank {ended.rank} of {self.size} {_end_reason(ended)}."
        )
        self.close()
        self._loss = DeviceLost(reason)
        return self._loss


def _end_reason(rank: _Rank) -> str:
    code = rank.process.wait()
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    try:
        while rank.connection.poll():
            rank.receive()
    except EngineError as error:
        return f"has failed: {error}"
    except (EOFError, OSError):
        pass
    return f"ended with exit status {code}"


def _end(ranks: Sequence[_Rank], watch: _Watch, folder: Path) -> None:
    watch.is_closing = True
    for rank in ranks:
        rank.end()
    shutil.rmtree(folder, ignore_errors=True)
