"""`python -m engine.structured.worker FD`: the fork server, which forks a process for each grammar.

It loads the compiler and the vocabulary once, and stays idle and without threads, so that a fork is safe and
takes a millisecond. All work on a grammar is done in its own process, which can be killed. All processes end
with the engine: the fork server when its socket closes, its children with it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from typing import NoReturn

from engine.structured.grammar_process import serve_grammar
from engine.structured.lean_xgrammar import import_xgrammar
from engine.structured.vocabulary import Vocabulary
from engine.structured.wire import COMMAND, MAX_EXTRA_BYTES, SPAWN, read_frame

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "800"  # when memory runs out, the kernel kills these before the engine


class Worker:
    def __init__(self, link: socket.socket, vocabulary: Vocabulary) -> None:
        self._link = link
        self._vocabulary = vocabulary
        self._info = vocabulary.tokenizer_info()
        self._max_bytes = _address_space() + MAX_EXTRA_BYTES
        self._pids: dict[int, int] = {}  # of children that are not reaped, so no other process has these ids

    def run(self) -> None:
        """Serve commands until the engine closes its end."""
        signal.signal(signal.SIGCHLD, lambda *_: self._reap())
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._link, COMMAND.size, 2)
            if not data:
                return
            what, number = COMMAND.unpack(data)
            if what == SPAWN:
                self._spawn(number, *descriptors)
            elif (pid := self._pids.get(number)) is not None:
                os.kill(pid, signal.SIGKILL)

    def _spawn(self, number: int, link: int, masks: int) -> None:
        signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGCHLD}
        )  # else a child may end before it is recorded
        try:
            me = os.getpid()
            pid = os.fork()
            if not pid:
                self._become(me, link, masks)
            self._pids[number] = pid
        except OSError as error:  # the engine sees the socket close
            print(f"no process for a grammar: {error}", file=sys.stderr, flush=True)  # noqa: T201
        finally:
            os.close(link)
            os.close(masks)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})

    def _become(self, parent: int, link: int, masks: int) -> NoReturn:
        """Runs in the child."""
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            self._link.close()
            _end_with_parent(parent)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            with suppress(OSError, ValueError):  # a lower limit is set already
                resource.setrlimit(resource.RLIMIT_AS, (self._max_bytes, self._max_bytes))
            with socket.socket(fileno=link) as asks:
                serve_grammar(asks, masks, self._info, self._vocabulary)
        except (EOFError, OSError, MemoryError):
            pass
        finally:
            os._exit(0)

    def _reap(self) -> None:
        for number, pid in tuple(self._pids.items()):
            with suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    del self._pids[number]


def _end_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def _address_space() -> int:
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 2**31


def main() -> None:
    for signum in (
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
    ):  # meant for the engine, which shuts down gracefully
        signal.signal(signum, signal.SIG_IGN)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write(_OOM_SCORE)
    with socket.socket(fileno=int(sys.argv[1])) as link, suppress(EOFError, ConnectionError):
        vocabulary = Vocabulary.from_json(read_frame(link))
        import_xgrammar()
        worker = Worker(link, vocabulary)
        gc.collect()
        gc.freeze()  # keeps memory shared with the children
        worker.run()


if __name__ == "__main__":
    main()
